// Norm, residual and neuron over all time steps in one pass, for inference. Called by inference.py; plain C interface.
//
// Each operation rounds by itself, as in kernels.py: products and sums are not contracted.
#include <algorithm>
#include <cstdint>
#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

struct Neuron {
    float decay, gain, threshold, initial, subtracted;
    int32_t reset, T, encode;  // reset: 0 none, 1 hard, 2 soft
};

constexpr int BLOCK = 512;  // neurons whose membranes stay in the cache while time passes

template <int RESET>
static void block(const Neuron& p, const float* x, const float* a, const float* b, const float* residual, float* out,
                  int64_t M, int64_t C, int64_t inner, int64_t from, int64_t n) {
    float v[BLOCK], scale[BLOCK], shift[BLOCK];
    std::fill(v, v + n, p.initial);
    if (a) {
        for (int64_t j = 0; j < n;) {
            const int64_t place = from + j;
            if (inner == 1) {
                const int64_t c = place % C, many = std::min(C - c, n - j);
                std::copy(a + c, a + c + many, scale + j);
                std::copy(b + c, b + c + many, shift + j);
                j += many;
            } else {
                const int64_t c = place / inner % C, many = std::min(inner - place % inner, n - j);
                std::fill(scale + j, scale + j + many, a[c]);
                std::fill(shift + j, shift + j + many, b[c]);
                j += many;
            }
        }
    } else {
        std::fill(scale, scale + n, 1.0f);
        std::fill(shift, shift + n, 0.0f);
    }
    for (int32_t t = 0; t < p.T; ++t) {
        const float* now = x + (p.encode ? 0 : t * M) + from;
        const float* more = residual ? residual + t * M + from : nullptr;
        float* spikes = out + t * M + from;
        for (int64_t j = 0; j < n; ++j) {
            float i = scale[j] * now[j] + shift[j];
            if (more) i = i + more[j];
            const float h = p.decay * v[j] + p.gain * i;
            const bool s = h >= p.threshold;
            spikes[j] = s ? 1.0f : 0.0f;
            v[j] = RESET == 0 ? h : RESET == 1 ? (s ? 0.0f : h) : (s ? h - p.subtracted : h);
        }
    }
}

// x (T, M) or, encoding, (M); a, b (C) or null; residual (T, M) or null; out (T, M). The channel of place j is j / inner % C.
extern "C" void fire(const Neuron* p, const float* x, const float* a, const float* b, const float* residual, float* out,
                     int64_t M, int64_t C, int64_t inner, int threads) {
    const int64_t blocks = (M + BLOCK - 1) / BLOCK;
    if (M * p->T < 1 << 15) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < blocks; ++k) {
        const int64_t from = k * BLOCK, n = std::min<int64_t>(BLOCK, M - from);
        auto run = p->reset == 0 ? block<0> : p->reset == 1 ? block<1> : block<2>;
        run(*p, x, a, b, residual, out, M, C, inner, from, n);
    }
}
