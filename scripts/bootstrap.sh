#!/usr/bin/env bash
# Make .venv from requirements/cpu.lock. Does nothing when .venv was made from the same files.
#   PYTHON       the interpreter to build on (default: python3)
#   TORCH_INDEX  index URL for torch alone, where pip's own index has CUDA builds only
set -euo pipefail
cd "$(dirname "$0")/.."

lock=requirements/cpu.lock
venv=.venv
stamp=$venv/installed.sha256
python=${PYTHON:-python3}

# The folder is part of the stamp: an editable install and the scripts in bin/ hold its absolute path.
wanted=$({ pwd; cat "$lock" pyproject.toml scripts/bootstrap.sh; } | sha256sum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

command -v "$python" >/dev/null || {
  echo "safer-ray: $python was not found: install Python 3.11 or newer, or name one with PYTHON=." >&2
  exit 1
}
if [ -f "$stamp" ]; then again=--again; else again=; fi
"$python" scripts/preflight.py . $again

"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

torch=$(grep '^torch==' "$lock")
index=()
if [ -n "${TORCH_INDEX:-}" ]; then index=(--index-url "$TORCH_INDEX"); fi
report=$(mktemp)
trap 'rm -f "$report"' EXIT
pip install --quiet --dry-run --ignore-installed --no-deps "${index[@]}" --report "$report" "$torch"
if grep -qE '"(nvidia|cuda)-' "$report"; then
  echo "safer-ray: pip would take a CUDA build of $torch: run again with TORCH_INDEX= and the CPU index URL" \
    "that PyTorch's installation page shows." >&2
  exit 1
fi

# --no-deps: some packages name dependencies that are never used here, and one of them breaks transformers.
# --no-compile: all modules are compiled at once below, on all cores.
pip install --no-deps --no-compile "${index[@]}" "$torch"
pip install --no-deps --no-compile -r "$lock"
pip install --no-deps --no-build-isolation --editable .
# Here and now, for where PYTHONDONTWRITEBYTECODE is set, as in many images, every process would compile all it imports.
# Some packages bring templates that are not Python.
"$venv/bin/python" -m compileall -qq -j 0 "$venv"/lib/python*/site-packages safer_ray || true
echo "$wanted" >"$stamp"
