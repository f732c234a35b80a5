"""The classifier on a tiny pack, by characters: calibrated, honest about none, kept without pickles."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_packs import made_pack, made_rule
from typer.testing import CliRunner

from safer_ray.backends import encoders
from safer_ray.backends.classifier import Classifier, ClassifierSpec
from safer_ray.cli_rules import app
from safer_ray.core.exemplar_head import Labels, area_under_curve, cosine_kernel, fit_head
from safer_ray.errors import ModelError, RulePackError

WORDS = {"R01": "door", "R02": "window"}
PLACES = ["school", "bank", "museum", "library", "castle", "office", "church", "garage"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    rules = [made_rule(rule_id, word) for rule_id, word in WORDS.items()]
    (folder / "pack.yaml").write_text(made_pack(*rules), encoding="utf-8")
    (folder / "prompts").mkdir()
    for rule_id, word in WORDS.items():
        rows = []
        for number, place in enumerate(PLACES):
            split = "test" if number >= 6 else "train"
            for label, text in (
                ("unsafe", f"How do I break open the {word} of a {place} at night?"),
                ("safe", f"How do I clean and paint the {word} of my {place}?"),
            ):
                name = f"{rule_id}-{number:03}-{label[0]}"
                rows.append({"id": name, "label": label, "category": rule_id, "split": split, "prompt": text})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "prompts" / f"{rule_id}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def classifier(pack: Path, cache: Path) -> Classifier:
    return ClassifierSpec(pack=str(pack), encoder="characters", cache_dir=str(cache)).build()


@pytest.mark.parametrize("rule_id", WORDS)
def test_a_prompt_that_violates_a_rule_is_found_and_its_twin_is_not(classifier: Classifier, rule_id: str) -> None:
    word = WORDS[rule_id]
    unsafe, safe, other = classifier.classify(
        [f"How do I break open the {word} of a church?", f"How do I paint the {word} of my church?", "Bake a cake."]
    )
    assert (unsafe.rule_id, next(iter(unsafe.scores))) == (rule_id, rule_id)
    assert (safe.rule_id, other.rule_id) == ("R00", "R00")
    assert unsafe.unsafe > safe.unsafe
    assert any(each.rule_id == rule_id and each.unsafe for each in unsafe.nearest)


def test_a_verdict_names_its_pack_its_encoder_and_what_it_decoded(classifier: Classifier, pack: Path) -> None:
    plain, shown = classifier.classify(
        ["How do I break open the door of a church?", "How do I break open the d00r of a church?"]
    )
    assert plain.encoder == "characters@1"
    assert len(plain.rule_pack_hash) == 64
    assert shown.scores == plain.scores
    assert [each.plain for each in shown.normalised.decodings] == ["door"]


def test_a_machine_check_that_fires_carries_the_verdict(classifier: Classifier) -> None:
    [found] = classifier.classify(["He said: crowbar the window, bake a cake and call it a day."])
    assert (found.rule_id, found.scores["R02"] >= 0.9, found.unsafe >= 0.9) == ("R02", True, True)
    assert [(hit.check_id, hit.excerpt) for hit in found.hits] == [("R02.a", "crowbar the window")]


def test_no_text_no_classification(classifier: Classifier) -> None:
    assert classifier.classify([]) == []


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=40))
def test_scores_are_probabilities_of_known_rules(classifier: Classifier, text: str) -> None:
    [found] = classifier.classify([text])
    assert set(found.scores) == set(WORDS)
    assert all(0 <= score <= 1 for score in (found.unsafe, *found.scores.values()))
    assert found.rule_id in ("R00", *WORDS)
    passes = any(found.scores[rule_id] >= threshold for rule_id, threshold in classifier.thresholds.items())
    assert passes is (found.rule_id != "R00")


def test_a_fitted_head_is_kept_read_back_and_fitted_again_when_broken(
    pack: Path, cache: Path, classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    [kept] = cache.iterdir()
    with np.load(kept, allow_pickle=False) as arrays:
        assert "vectors_NLD" in arrays
    spec = ClassifierSpec(pack=str(pack), encoder="characters", cache_dir=str(cache))
    asked = ["How do I break open the door of a church?"]
    wanted = classifier.classify(asked)
    assert spec.build().classify(asked) == wanted
    kept.write_bytes(b"PK not an archive")
    with caplog.at_level(logging.WARNING):
        assert spec.build().classify(asked) == wanted
    assert "cannot be read" in caplog.text


def test_test_prompts_are_not_fitted_on(pack: Path, cache: Path) -> None:
    spec = ClassifierSpec(pack=str(pack), encoder="characters", cache_dir=str(cache))
    names = {each.name for each in spec.build().classify(["door of a church at night"])[0].nearest}
    assert not names & {"R01-006-u", "R01-007-u", "R02-006-u", "R02-007-u"}


def test_without_the_model_the_fallback_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoders, "_PACKAGE", "no_such_package_is_installed")
    with caplog.at_level(logging.WARNING):
        assert encoders.find_encoder("auto").name == "characters@1"
    assert "less exact" in caplog.text
    with pytest.raises(ModelError, match="is not installed"):
        encoders.find_encoder("minilm")


def test_a_pack_whose_exemplars_are_all_of_one_kind_is_refused() -> None:
    labels = Labels(rule_N=np.array([0, 0]), unsafe_N=np.array([1.0, 1.0]), group_N=np.array([0, 1]))
    with pytest.raises(ValueError, match="exemplars that do not"):
        fit_head(np.eye(2), np.eye(2), labels, 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 4))
def test_a_head_learns_what_lies_apart_and_its_thresholds_are_in_bounds(seed: int, rules: int) -> None:
    rng = np.random.default_rng(seed)
    rule_N = np.tile(np.arange(rules), 20)
    unsafe_N = np.repeat([1.0, 0.0], 10 * rules)
    centres = np.eye(rules + 1)
    rows = centres[rule_N] + unsafe_N[:, None] * centres[rules] + 0.05 * rng.normal(size=(len(rule_N), rules + 1))
    kernel = cosine_kernel(rows, rows)
    head = fit_head(kernel, kernel, Labels(rule_N=rule_N, unsafe_N=unsafe_N, group_N=np.arange(len(rule_N))), rules)
    unsafe_M, score_MR = head.scores(kernel, kernel)
    assert area_under_curve(unsafe_M.tolist(), (unsafe_N > 0).tolist()) == 1.0
    assert (score_MR.argmax(axis=1)[unsafe_N > 0] == rule_N[unsafe_N > 0]).all()
    assert np.allclose(score_MR.sum(axis=1), unsafe_M)
    assert ((head.threshold_R >= 0.1) & (head.threshold_R <= 0.9)).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_the_area_under_the_curve_counts_pairs(cases: list[tuple[int, bool]]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a, up in cases for b, down in cases if up and not down]
    found = area_under_curve([score for score, _ in cases], [positive for _, positive in cases])
    assert found == pytest.approx(sum(pairs) / len(pairs)) if pairs else np.isnan(found)


def _run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    return done.exit_code, done.output


@pytest.fixture
def in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.mark.usefixtures("in_cache")
def test_the_command_explains_which_rule_fired_where_and_what_was_decoded(pack: Path) -> None:
    text = "How do I break open the d00r of a church at night, crowbar the door?"
    code, said = _run("explain", text, "--pack", str(pack), "--encoder", "characters")
    assert code == 0
    assert "verdict: R01" in said
    assert "decoded leetspeak at 24-28: 'd00r' -> 'door'" in said
    assert "'crowbar the door': check R01.a" in said
    assert "rule pack " in said
    code, said = _run("explain", text, "--pack", str(pack), "--encoder", "characters", "--json")
    assert json.loads(said)["classification"]["rule_id"] == "R01"


@pytest.mark.usefixtures("in_cache")
def test_the_command_tests_a_pack_on_its_test_prompts_and_counts_a_file(pack: Path) -> None:
    code, said = _run("test", str(pack), "--encoder", "characters")
    assert code == 0
    assert "4 unsafe and 4 safe test prompts" in said
    assert "first for 4, among three for 4" in said
    data = str(pack / "prompts" / "R01.jsonl")
    code, said = _run("coverage", data, "--pack", str(pack), "--by", "label", "--encoder", "characters")
    assert code == 0
    assert "unsafe" in said
    assert "100%" in said


@pytest.mark.usefixtures("in_cache")
def test_the_command_compares_two_packs_by_the_verdicts_on_their_prompts(pack: Path, tmp_path: Path) -> None:
    text = (pack / "pack.yaml").read_text(encoding="utf-8").replace("crowbar the door", "paint the door")
    other = tmp_path / "other"
    other.mkdir()
    (other / "pack.yaml").write_text(text, encoding="utf-8")
    (other / "prompts").symlink_to(pack / "prompts")
    code, said = _run("diff", str(pack), str(other), "--encoder", "characters")
    assert code == 0
    assert "rules worded differently: R01" in said
    assert "R01-000-s: R00 -> R01  How do I clean and paint the door of my school?" in said
    assert "8 of 32 prompts change their verdict" in said


def test_the_command_lints(pack: Path) -> None:
    code, said = _run("lint", str(pack))
    assert code == 0
    assert "2 rules, 0 remarks" in said


def test_lint_names_what_could_be_better(tmp_path: Path) -> None:
    rule = made_rule("R01").replace("to open a stranger's", "opening a stranger's", 1)
    rule = rule.replace("intents: [to open", "intents: [opening")
    (tmp_path / "pack.yaml").write_text(f'name: x\nversion: "1"\nnone_label: R00\nrules:\n{rule}', encoding="utf-8")
    code, said = _run("lint", str(tmp_path))
    assert code == 1
    assert "does not start with 'to'" in said


@pytest.mark.usefixtures("in_cache")
def test_wrong_words_are_refused(pack: Path) -> None:
    with pytest.raises(RulePackError, match="known are auto"):
        _run("explain", "x", "--pack", str(pack), "--encoder", "bert")
