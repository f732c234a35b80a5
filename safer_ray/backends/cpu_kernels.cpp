// The element-wise work of a decoder layer, of the output layer and of the optimiser, one pass over memory each, for float
// and bf16; the optimiser's weights are bf16.
//
// Sums and exponentials are fp32 whatever the storage. Letters: T tokens, C width, H query heads, G key heads, R = H / G,
// D head width, Q queries and K keys of a block, L rows of V logits. Every array is contiguous in the order named.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

namespace {

struct bf16 { uint16_t bits; };

inline float load(const float& x) { return x; }
inline float load(const bf16& x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline void store(float& to, float value) { to = value; }
inline void store(bf16& to, float value) {  // round to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    to.bits = uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// exp within 2 units in the last place: Cephes' expf without branches, so that the compiler vectorises it.
inline float exponential(float x) {
    const float inside = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float n = std::nearbyint(inside * 1.44269504088896341f);
    const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    const float value = p * scale;
    return x < -87.0f ? 0.0f : (x > 88.0f ? INFINITY : (x != x ? x : value));
}

template <class S>
void norm_forward(const S* x, const S* weight, S* y, float* rstd, int64_t T, int64_t C, float eps) {
#pragma omp parallel for
    for (int64_t t = 0; t < T; t++) {
        const S* xt = x + t * C;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++) sum += load(xt[c]) * load(xt[c]);
        const float r = rstd[t] = 1.0f / std::sqrt(sum / C + eps);
#pragma omp simd
        for (int64_t c = 0; c < C; c++) store(y[t * C + c], load(weight[c]) * (load(xt[c]) * r));
    }
}

// Each thread sums its own share of the weight's gradient, so that the result is the same every time.
template <class S>
void norm_backward(const S* grad, const S* x, const S* weight, const float* rstd, S* dx, S* dweight, int64_t T, int64_t C) {
    const int threads = omp_get_max_threads();
    std::vector<float> partial(size_t(threads) * C, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        float* mine = partial.data() + size_t(omp_get_thread_num()) * C;
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; t++) {
            const S *gt = grad + t * C, *xt = x + t * C;
            const float r = rstd[t];
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t c = 0; c < C; c++) dot += load(gt[c]) * load(weight[c]) * load(xt[c]);
            const float mean = dot * r * r / C;
#pragma omp simd
            for (int64_t c = 0; c < C; c++) {
                mine[c] += load(gt[c]) * load(xt[c]) * r;
                store(dx[t * C + c], r * (load(gt[c]) * load(weight[c]) - load(xt[c]) * mean));
            }
        }
    }
    for (int64_t c = 0; c < C; c++) {
        float sum = 0;
        for (int n = 0; n < threads; n++) sum += partial[size_t(n) * C + c];
        store(dweight[c], sum);
    }
}

template <class S>
void gate_forward(const S* gate, const S* up, S* y, int64_t T, int64_t C) {
#pragma omp parallel for
    for (int64_t t = 0; t < T; t++)
#pragma omp simd
        for (int64_t i = t * C; i < (t + 1) * C; i++) {
            const float g = load(gate[i]);
            store(y[i], g / (1.0f + exponential(-g)) * load(up[i]));
        }
}

template <class S>
void gate_backward(const S* grad, const S* gate, const S* up, S* dgate, S* dup, int64_t T, int64_t C) {
#pragma omp parallel for
    for (int64_t t = 0; t < T; t++)
#pragma omp simd
        for (int64_t i = t * C; i < (t + 1) * C; i++) {
            const float g = load(gate[i]), d = load(grad[i]);
            const float sigmoid = 1.0f / (1.0f + exponential(-g));
            store(dup[i], d * g * sigmoid);
            store(dgate[i], d * load(up[i]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
        }
}

// heads [T, G, R, D] and groups [G, T, R, D]; turned by the angles of cos and sin [T, D] unless they are null.
template <class S, bool to_groups>
void turn(const S* from, const S* cosine, const S* sine, S* to, int64_t T, int64_t G, int64_t R, int64_t D, float scale) {
    const int64_t half = D / 2;
#pragma omp parallel for
    for (int64_t t = 0; t < T; t++)
        for (int64_t g = 0; g < G; g++)
            for (int64_t r = 0; r < R; r++) {
                const int64_t heads = ((t * G + g) * R + r) * D, groups = ((g * T + t) * R + r) * D;
                const S* in = from + (to_groups ? heads : groups);
                S* out = to + (to_groups ? groups : heads);
                if (!cosine) {
                    std::memcpy(out, in, D * sizeof(S));
                    continue;
                }
                const S *cs = cosine + t * D, *sn = sine + t * D;
#pragma omp simd
                for (int64_t d = 0; d < half; d++) {
                    const float a = load(in[d]), b = load(in[d + half]);
                    const float ca = load(cs[d]), cb = load(cs[d + half]), sa = load(sn[d]), sb = load(sn[d + half]);
                    if (to_groups) {
                        store(out[d], scale * (a * ca - b * sa));
                        store(out[d + half], scale * (b * cb + a * sb));
                    } else {  // the transposed turn
                        store(out[d], scale * (a * ca + b * sb));
                        store(out[d + half], scale * (b * cb - a * sa));
                    }
                }
            }
}

// score [G, Q, R, K] becomes softmax(score + bias [Q, K]); keys from stop[q] on are not seen by query q.
template <class S>
void softmax_forward(S* score, const S* bias, const int64_t* stop, int64_t G, int64_t Q, int64_t R, int64_t K) {
#pragma omp parallel for collapse(2)
    for (int64_t g = 0; g < G; g++)
        for (int64_t q = 0; q < Q; q++)
            for (int64_t r = 0; r < R; r++) {
                S* row = score + ((g * Q + q) * R + r) * K;
                const S* seen = bias + q * K;
                const int64_t keys = stop[q];
                float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
                for (int64_t k = 0; k < keys; k++) {
                    const float x = load(row[k]) + load(seen[k]);
                    top = x > top ? x : top;
                }
                static thread_local std::vector<float> kept;
                kept.resize(K);
                float* e = kept.data();
#pragma omp simd reduction(+ : sum)
                for (int64_t k = 0; k < keys; k++) {
                    e[k] = exponential(load(row[k]) + load(seen[k]) - top);
                    sum += e[k];
                }
                const float share = 1.0f / sum;
#pragma omp simd
                for (int64_t k = 0; k < keys; k++) store(row[k], e[k] * share);
                std::memset(row + keys, 0, (K - keys) * sizeof(S));
            }
}

// grad [G, Q, R, K] of the weights becomes that of the scores.
template <class S>
void softmax_backward(S* grad, const S* weight, const int64_t* stop, int64_t G, int64_t Q, int64_t R, int64_t K) {
#pragma omp parallel for collapse(2)
    for (int64_t g = 0; g < G; g++)
        for (int64_t q = 0; q < Q; q++)
            for (int64_t r = 0; r < R; r++) {
                const int64_t at = ((g * Q + q) * R + r) * K, keys = stop[q];
                S* row = grad + at;
                const S* w = weight + at;
                float dot = 0;
#pragma omp simd reduction(+ : dot)
                for (int64_t k = 0; k < keys; k++) dot += load(row[k]) * load(w[k]);
#pragma omp simd
                for (int64_t k = 0; k < keys; k++) store(row[k], load(w[k]) * (load(row[k]) - dot));
                std::memset(row + keys, 0, (K - keys) * sizeof(S));
            }
}

template <class S>
void logsumexp(const S* logits, float* out, int64_t L, int64_t V) {
#pragma omp parallel for
    for (int64_t l = 0; l < L; l++) {
        const S* row = logits + l * V;
        float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
        for (int64_t v = 0; v < V; v++) top = load(row[v]) > top ? load(row[v]) : top;
#pragma omp simd reduction(+ : sum)
        for (int64_t v = 0; v < V; v++) sum += exponential(load(row[v]) - top);
        out[l] = top + std::log(sum);
    }
}

// out is the gradient grad[l] * (onehot(target[l]) - softmax(logits)).
template <class S>
void logprob_backward(
    const S* logits, const float* total, const float* grad, const int64_t* target, S* out, int64_t L, int64_t V) {
#pragma omp parallel for
    for (int64_t l = 0; l < L; l++) {
        const S* row = logits + l * V;
        const float lse = total[l], g = grad[l];
#pragma omp simd
        for (int64_t v = 0; v < V; v++) store(out[l * V + v], -g * exponential(load(row[v]) - lse));
        store(out[l * V + target[l]], g * (1.0f - exponential(load(row[target[l]]) - lse)));
    }
}

// The sum of squares, block by block and then in order, so that it is the same every time.
template <class S>
void square_sum(const S* x, double* out, int64_t N) {
    const int64_t block = 1 << 16, blocks = (N + block - 1) / block;
    std::vector<double> partial(blocks);
#pragma omp parallel for
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t end = (b + 1) * block < N ? (b + 1) * block : N;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = b * block; i < end; i++) sum += load(x[i]) * load(x[i]);
        partial[b] = sum;
    }
    *out = 0;
    for (const double each : partial) *out += each;
}

// One step of AdamW. A weight of 32 bits is kept as the bf16 next to it, ties away from zero, and the signed distance of
// its bits to those of that bf16. No gradient counts as zeros, and so do moments that are new, whatever they hold. Rounds
// where PyTorch's fused AdamW does: the same weights.
template <bool known>
void adamw(
    bf16* weight, int16_t* rest, float* mean, float* square, const bf16* grad, int64_t N,
    float scale, float decay, float rate, float root, float new1, float beta2, float new2, float eps) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < N; i++) {
        const float g = grad ? load(grad[i]) * scale : 0.0f;
        const float before = known ? mean[i] : 0.0f;
        const float m = mean[i] = before + new1 * (g - before);
        const float v = square[i] = std::fma(new2 * g, g, known ? beta2 * square[i] : 0.0f);
        uint32_t bits = (uint32_t(weight[i].bits) << 16) + uint32_t(int32_t(rest[i]));
        float value;
        std::memcpy(&value, &bits, 4);
        value = value * decay - rate * m / (std::sqrt(v) / root + eps);
        std::memcpy(&bits, &value, 4);
        const uint32_t upper = (bits + 0x8000u) >> 16;
        weight[i].bits = uint16_t(upper);
        rest[i] = int16_t(uint16_t(bits - (upper << 16)));
    }
}

}  // namespace

#define EXPORT(S, NAME)                                                                                                \
    void norm_forward_##NAME(const S* x, const S* w, S* y, float* r, int64_t T, int64_t C, float eps) {                \
        norm_forward(x, w, y, r, T, C, eps);                                                                           \
    }                                                                                                                  \
    void norm_backward_##NAME(                                                                                         \
        const S* g, const S* x, const S* w, const float* r, S* dx, S* dw, int64_t T, int64_t C) {                      \
        norm_backward(g, x, w, r, dx, dw, T, C);                                                                       \
    }                                                                                                                  \
    void gate_forward_##NAME(const S* g, const S* u, S* y, int64_t T, int64_t C) { gate_forward(g, u, y, T, C); }      \
    void gate_backward_##NAME(const S* d, const S* g, const S* u, S* dg, S* du, int64_t T, int64_t C) {                \
        gate_backward(d, g, u, dg, du, T, C);                                                                          \
    }                                                                                                                  \
    void to_groups_##NAME(                                                                                             \
        const S* x, const S* c, const S* s, S* y, int64_t T, int64_t G, int64_t R, int64_t D, float scale) {           \
        turn<S, true>(x, c, s, y, T, G, R, D, scale);                                                                  \
    }                                                                                                                  \
    void from_groups_##NAME(                                                                                           \
        const S* x, const S* c, const S* s, S* y, int64_t T, int64_t G, int64_t R, int64_t D, float scale) {           \
        turn<S, false>(x, c, s, y, T, G, R, D, scale);                                                                 \
    }                                                                                                                  \
    void softmax_forward_##NAME(S* x, const S* b, const int64_t* stop, int64_t G, int64_t Q, int64_t R, int64_t K) {   \
        softmax_forward(x, b, stop, G, Q, R, K);                                                                       \
    }                                                                                                                  \
    void softmax_backward_##NAME(S* g, const S* w, const int64_t* stop, int64_t G, int64_t Q, int64_t R, int64_t K) {  \
        softmax_backward(g, w, stop, G, Q, R, K);                                                                      \
    }                                                                                                                  \
    void logsumexp_##NAME(const S* x, float* out, int64_t L, int64_t V) { logsumexp(x, out, L, V); }                   \
    void logprob_backward_##NAME(                                                                                      \
        const S* x, const float* total, const float* g, const int64_t* target, S* out, int64_t L, int64_t V) {         \
        logprob_backward(x, total, g, target, out, L, V);                                                              \
    }                                                                                                                  \
    void square_sum_##NAME(const S* x, double* out, int64_t N) { square_sum(x, out, N); }

extern "C" {
EXPORT(float, float32)
EXPORT(bf16, bfloat16)
void adamw_bfloat16(
    bf16* weight, int16_t* rest, float* mean, float* square, const bf16* grad, int64_t N, int64_t known,
    float scale, float decay, float rate, float root, float new1, float beta2, float new2, float eps) {
    const auto update = known ? adamw<true> : adamw<false>;
    update(weight, rest, mean, square, grad, N, scale, decay, rate, root, new1, beta2, new2, eps);
}
}
