// Convolution of spikes: what is computed is what the spikes that there are add up to. Called by event_driven.py; plain C interface.
//
// All maps are channels last: x (M, H, W, C), y (M, Ho, Wo, K), weights (kh, kw, C, K) in float32. Spikes come as bits, 64
// channels to a word: bits (M, H, W, words). K is a multiple of 16. dtype: 0 float32, 1 bfloat16.
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t numbers __attribute__((vector_size(64), aligned(4), may_alias));
#ifdef __AVX512F__
constexpr int BLOCK = 8;  // vectors of 16 that stay in registers
#else
constexpr int BLOCK = 4;
#endif

static inline uint16_t narrow(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// Nonzero values of n <= 64 as bits; whether one of them is not 1 is told in `other`.
static inline uint64_t word_float(const uint32_t* x, int n, bool& other) {
    uint64_t bits = 0;
    int j = 0;
#if defined(__AVX512F__)
    for (; j + 16 <= n; j += 16) {
        __m512i v = _mm512_loadu_si512(x + j);
        uint32_t mask = _mm512_test_epi32_mask(v, _mm512_set1_epi32(0x7fffffff));
        uint32_t ones = _mm512_cmpeq_epi32_mask(v, _mm512_set1_epi32(0x3f800000));
        other |= (mask & ~ones) != 0;
        bits |= uint64_t(mask) << j;
    }
#elif defined(__AVX2__)
    for (; j + 8 <= n; j += 8) {
        __m256i v = _mm256_loadu_si256((const __m256i*)(x + j));
        __m256i zero = _mm256_cmpeq_epi32(_mm256_slli_epi32(v, 1), _mm256_setzero_si256());
        uint32_t mask = 0xff & ~uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(zero)));
        __m256i one = _mm256_cmpeq_epi32(v, _mm256_set1_epi32(0x3f800000));
        uint32_t ones = uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(one)));
        other |= (mask & ~ones) != 0;
        bits |= uint64_t(mask) << j;
    }
#endif
    for (; j < n; ++j) {
        bool on = (x[j] & 0x7fffffffu) != 0;
        other |= on && x[j] != 0x3f800000u;
        bits |= uint64_t(on) << j;
    }
    return bits;
}

static inline uint64_t word_bfloat(const uint16_t* x, int n, bool& other) {
    uint64_t bits = 0;
    int j = 0;
#if defined(__AVX512BW__)
    for (; j + 32 <= n; j += 32) {
        __m512i v = _mm512_loadu_si512(x + j);
        uint32_t mask = _mm512_test_epi16_mask(v, _mm512_set1_epi16(0x7fff));
        uint32_t ones = _mm512_cmpeq_epi16_mask(v, _mm512_set1_epi16(0x3f80));
        other |= (mask & ~ones) != 0;
        bits |= uint64_t(mask) << j;
    }
#endif
    for (; j < n; ++j) {
        bool on = (x[j] & 0x7fff) != 0;
        other |= on && x[j] != 0x3f80;
        bits |= uint64_t(on) << j;
    }
    return bits;
}

// Spikes of `rows` pixels as bits. Returns how many there are, or -1 where a value is neither 0 nor 1.
extern "C" int64_t spikes_to_bits(const void* x, int dtype, int64_t rows, int C, uint64_t* bits, int threads) {
    const int words = (C + 63) / 64;
    int64_t total = 0;
    bool bad = false;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : total) reduction(| : bad)
    for (int64_t r = 0; r < rows; ++r) {
        for (int i = 0; i < words; ++i) {
            const int n = C - 64 * i < 64 ? C - 64 * i : 64;
            bool other = false;
            uint64_t word = dtype ? word_bfloat((const uint16_t*)x + r * C + 64 * i, n, other)
                                  : word_float((const uint32_t*)x + r * C + 64 * i, n, other);
            bits[r * words + i] = word;
            total += __builtin_popcountll(word);
            bad |= other;
        }
    }
    return bad ? -1 : total;
}

struct Shape {
    int32_t H, W, C, Ho, Wo, K, kh, kw, stride, pad;
};

// The spikes of one image, row of pixels after row, each as (w * C + c) * scale; start[h * (W + 1) + w] is where pixel (h, w)
// begins. So the spikes that a row of a kernel meets stand one after another.
struct List {
    std::vector<int32_t> start, spikes;

    explicit List(const Shape& s) : start(s.H * (s.W + 1)), spikes(int64_t(s.H) * s.W * s.C + 16) {}

    void fill(const uint64_t* bits, const Shape& s, int32_t scale) {
        const int words = (s.C + 63) / 64;
        int32_t n = 0;
        for (int h = 0; h < s.H; ++h) {
            for (int w = 0; w < s.W; ++w) {
                start[h * (s.W + 1) + w] = n;
                for (int i = 0; i < words; ++i) {
                    uint64_t word = *bits++;
                    const int32_t base = w * s.C + 64 * i;
                    while (word) {
                        spikes[n++] = (base + __builtin_ctzll(word)) * scale;
                        word &= word - 1;
                    }
                }
            }
            start[h * (s.W + 1) + s.W] = n;
        }
    }
};

// 16 R outputs from `first` on, of all pixels of an image: the sum of the weights' rows that spikes pick.
template <int R>
static void gather(const Shape& s, const List& list, int32_t* picked, const float* weights, const float* bias, int first,
                   void* y, int dtype) {
    const int64_t K = s.K;
    for (int ho = 0; ho < s.Ho; ++ho) {
        for (int wo = 0; wo < s.Wo; ++wo) {
            // All rows of weights first, in one run of copies that no branch depends on.
            const int left = wo * s.stride - s.pad;
            const int from = left < 0 ? 0 : left, to = left + s.kw < s.W ? left + s.kw : s.W;
            int n = 0;
            for (int i = 0; i < s.kh; ++i) {
                const int h = ho * s.stride - s.pad + i;
                if (h < 0 || h >= s.H || from >= to) continue;
                const int32_t base = (i * s.kw - left) * s.C * s.K + first;
                const int32_t begin = list.start[h * (s.W + 1) + from], end = list.start[h * (s.W + 1) + to];
                for (int32_t e = begin; e < end; e += 16)
                    *(numbers*)(picked + n + e - begin) = *(const numbers*)(list.spikes.data() + e) + base;
                n += end - begin;
            }
            lanes sum[R];
            for (int r = 0; r < R; ++r) sum[r] = bias ? *(const lanes*)(bias + first + 16 * r) : lanes{};
            for (int e = 0; e < n; ++e) {
                const float* row = weights + picked[e];
                for (int r = 0; r < R; ++r) sum[r] += *(const lanes*)(row + 16 * r);
            }
            const int64_t at = (int64_t(ho) * s.Wo + wo) * K + first;
            if (!dtype) {
                for (int r = 0; r < R; ++r) *(lanes*)((float*)y + at + 16 * r) = sum[r];
            } else {
                uint16_t* out = (uint16_t*)y + at;
                for (int r = 0; r < R; ++r)
                    for (int j = 0; j < 16; ++j) out[16 * r + j] = narrow(sum[r][j]);
            }
        }
    }
}

// Runs f with the number of vectors, as a constant, of each block of K outputs.
template <class F>
static void blocks(int K, F f) {
    for (int first = 0; first < K;) {
        const int left = (K - first) / 16;
        if (left >= 8 && BLOCK >= 8) f(std::integral_constant<int, 8>(), first), first += 128;
        else if (left >= 4) f(std::integral_constant<int, 4>(), first), first += 64;
        else if (left >= 2) f(std::integral_constant<int, 2>(), first), first += 32;
        else f(std::integral_constant<int, 1>(), first), first += 16;
    }
}

extern "C" void convolve(const uint64_t* bits, const float* weights, const float* bias, void* y, int dtype, int64_t M,
                         const Shape* shape, int threads) {
    const Shape s = *shape;
    const int64_t words = (s.C + 63) / 64;
#pragma omp parallel num_threads(threads)
    {
        List list(s);
        std::vector<int32_t> picked(s.kh * s.kw * s.C + 16);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; ++m) {
            list.fill(bits + m * s.H * s.W * words, s, s.K);
            char* out = (char*)y + m * s.Ho * s.Wo * s.K * (dtype ? 2 : 4);
            blocks(s.K, [&](auto R, int first) {
                gather<R>(s, list, picked.data(), weights, bias, first, out, dtype);
            });
        }
    }
}

// One image's part in 16 R columns of the weights' gradient (C, kh, kw, K): each spike adds the rows of g that it met.
template <int R>
static void scatter(const Shape& s, const List& list, const float* g, float* gradient, int first) {
    const int64_t taps = s.kh * s.kw;
    std::vector<int32_t> at(taps);
    std::vector<const float*> rows(taps);
    for (int h = 0; h < s.H; ++h) {
        for (int w = 0; w < s.W; ++w) {
            const int32_t begin = list.start[h * (s.W + 1) + w], end = list.start[h * (s.W + 1) + w + 1];
            if (begin == end) continue;
            int n = 0;
            for (int i = 0; i < s.kh; ++i) {
                const int a = h + s.pad - i;
                if (a < 0 || a % s.stride || a / s.stride >= s.Ho) continue;
                for (int j = 0; j < s.kw; ++j) {
                    const int b = w + s.pad - j;
                    if (b < 0 || b % s.stride || b / s.stride >= s.Wo) continue;
                    at[n] = (i * s.kw + j) * s.K + first;
                    rows[n++] = g + (int64_t(a / s.stride) * s.Wo + b / s.stride) * s.K + first;
                }
            }
            for (int32_t e = begin; e < end; ++e) {
                float* channel = gradient + (list.spikes[e] - int64_t(w) * s.C) * taps * s.K;
                for (int t = 0; t < n; ++t)
                    for (int r = 0; r < R; ++r)
                        *(lanes*)(channel + at[t] + 16 * r) += *(const lanes*)(rows[t] + 16 * r);
            }
        }
    }
}

// Gradient of the weights, (threads, C, kh, kw, K), to be summed over threads, from g (M, Ho, Wo, K).
extern "C" void weight_gradient(const uint64_t* bits, const void* g, int dtype, float* gradient, int64_t M,
                                const Shape* shape, int threads) {
    const Shape s = *shape;
    const int64_t words = (s.C + 63) / 64, size = int64_t(s.kh) * s.kw * s.C * s.K, pixels = int64_t(s.Ho) * s.Wo * s.K;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int part = 0; part < threads; ++part) {
        List list(s);
        std::vector<float> wide(dtype ? pixels : 0);
        float* mine = gradient + part * size;
        std::memset(mine, 0, size * sizeof(float));
        for (int64_t m = M * part / threads; m < M * (part + 1) / threads; ++m) {
            list.fill(bits + m * s.H * s.W * words, s, 1);
            const float* image = (const float*)g + m * pixels;
            if (dtype) {
                const uint16_t* from = (const uint16_t*)g + m * pixels;
                uint32_t* to = (uint32_t*)wide.data();
                for (int64_t i = 0; i < pixels; ++i) to[i] = uint32_t(from[i]) << 16;
                image = wide.data();
            }
            blocks(s.K, [&](auto R, int first) { scatter<R>(s, list, image, mine, first); });
        }
    }
}
