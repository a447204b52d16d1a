// Convolution of spikes: what is computed is what the spikes that there are add up to. Called by event_driven.py; plain C interface.
//
// All maps are channels last: x (M, H, W, C), y (M, Ho, Wo, K), weights (kh, kw, C, K) in float32. Spikes come as bits, 64
// channels to a word: bits (M, H, W, words). K is a multiple of 16. dtype: 0 float32, 1 bfloat16.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

// A processor's own vectors; how many of them sums may hold in registers, in a row and for three kernel columns at once.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROW = 8, THREE = 8;
#elif defined(__AVX__)
constexpr int WIDTH = 8, ROW = 8, THREE = 4;
#else
constexpr int WIDTH = 4, ROW = 8, THREE = 4;
#endif
typedef float lanes __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t numbers __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

static inline uint16_t narrow(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// Bits j..n of a word, one by one: values that are not zero (`sign` is the sign's bit); one that is not `one` is told in `other`.
template <class U>
static inline uint64_t word_rest(const U* x, int j, int n, U sign, U one, bool& other) {
    uint64_t bits = 0;
    for (; j < n; ++j) {
        const bool on = (x[j] & U(~sign)) != 0;
        other |= on && x[j] != one;
        bits |= uint64_t(on) << j;
    }
    return bits;
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
    return bits | word_rest<uint32_t>(x, j, n, 0x80000000u, 0x3f800000u, other);
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
    return bits | word_rest<uint16_t>(x, j, n, 0x8000, 0x3f80, other);
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

static inline float as_bfloat(float f) {
    uint32_t u = uint32_t(narrow(f)) << 16;
    std::memcpy(&f, &u, 4);
    return f;
}

// (n, m) to (m, n), if asked rounded to bfloat16.
extern "C" void transpose(const float* from, float* to, int64_t n, int64_t m, int round, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t a = 0; a < m; a += 16)
        for (int64_t b = 0; b < n; b += 16)
            for (int64_t i = a; i < std::min(a + 16, m); ++i)
                for (int64_t j = b; j < std::min(b + 16, n); ++j)
                    to[i * n + j] = round ? as_bfloat(from[j * m + i]) : from[j * m + i];
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

// WIDTH * R outputs from `first` on, of all pixels of an image: the sum of the weights' rows that spikes pick.
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
                for (int32_t e = begin; e < end; e += WIDTH)
                    *(numbers*)(picked + n + e - begin) = *(const numbers*)(list.spikes.data() + e) + base;
                n += end - begin;
            }
            lanes sum[R];
            for (int r = 0; r < R; ++r) sum[r] = bias ? *(const lanes*)(bias + first + WIDTH * r) : lanes{};
            for (int e = 0; e < n; ++e) {
                const float* row = weights + picked[e];
                for (int r = 0; r < R; ++r) sum[r] += *(const lanes*)(row + WIDTH * r);
            }
            const int64_t at = (int64_t(ho) * s.Wo + wo) * K + first;
            if (!dtype) {
                for (int r = 0; r < R; ++r) *(lanes*)((float*)y + at + WIDTH * r) = sum[r];
            } else {
                uint16_t* out = (uint16_t*)y + at;
                for (int r = 0; r < R; ++r)
                    for (int j = 0; j < WIDTH; ++j) out[WIDTH * r + j] = narrow(sum[r][j]);
            }
        }
    }
}

// Runs f with the number of vectors, as a constant, at most MOST, of each block of K outputs.
template <int MOST, class F>
static void blocks(int K, F f) {
    for (int first = 0; first < K;) {
        const int left = (K - first) / WIDTH;
        if (left >= 8 && MOST >= 8) f(std::integral_constant<int, 8>(), first), first += 8 * WIDTH;
        else if (left >= 4) f(std::integral_constant<int, 4>(), first), first += 4 * WIDTH;
        else if (left >= 2) f(std::integral_constant<int, 2>(), first), first += 2 * WIDTH;
        else f(std::integral_constant<int, 1>(), first), first += WIDTH;
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
            blocks<ROW>(s.K, [&](auto R, int first) {
                gather<R>(s, list, picked.data(), weights, bias, first, out, dtype);
            });
        }
    }
}

constexpr int64_t INPUTS = 1 << 21;  // that a thread sorts at once: 12 bytes for each, where outputs alone would not bound them

// The weights' gradient (kh, kw, C, K) from some images whose output gradients lie in L2, widened and framed by zeros.
//
// Spikes are sorted by channel and by where they stand to the stride: all of one kind meet the same rows of the kernel, so that
// sums stay in registers. For stride s a pixel h meets the kernel's rows i = r, r + s, ... with r = (h + pad) mod s, at the
// outputs (h + pad) / s, one less, ...
struct Gradient {
    const Shape s;
    const int I, J, Hp, Wp, kinds;
    int64_t images;
    std::vector<float> g;
    std::vector<int32_t> start, key, at, sorted;

    Gradient(const Shape& s, int64_t most)
        : s(s), I((s.kh - 1) / s.stride), J((s.kw - 1) / s.stride),
          Hp(I + std::max((s.H - 1 + s.pad) / s.stride + 1, s.Ho)), Wp(J + std::max((s.W - 1 + s.pad) / s.stride + 1, s.Wo)),
          kinds(s.stride * s.stride),
          images(std::max<int64_t>(
              1, std::min({most, 100000 / (int64_t(Hp) * Wp * s.K), INPUTS / (int64_t(s.H) * s.W * s.C)}))),
          g(images * Hp * Wp * s.K), start(s.C * kinds + 1), key(images * s.H * s.W * s.C), at(key.size()), sorted(key.size()) {}

    void frame(const void* from, int dtype, int64_t m) {
        for (int a = 0; a < s.Ho; ++a) {
            uint32_t* to = (uint32_t*)&g[((m * Hp + a + I) * Wp + J) * s.K];
            const int64_t n = int64_t(s.Wo) * s.K, begin = a * n;
            if (!dtype) std::memcpy(to, (const float*)from + begin, n * 4);
            else
                for (int64_t i = 0; i < n; ++i) to[i] = uint32_t(((const uint16_t*)from)[begin + i]) << 16;
        }
    }

    int sort(const uint64_t* bits, int64_t count) {
        const int words = (s.C + 63) / 64;
        int n = 0;
        std::fill(start.begin(), start.end(), 0);
        for (int64_t m = 0; m < count; ++m)
            for (int h = 0; h < s.H; ++h)
                for (int w = 0; w < s.W; ++w) {
                    const int kind = (h + s.pad) % s.stride * s.stride + (w + s.pad) % s.stride;
                    const int32_t row = ((m * Hp + (h + s.pad) / s.stride + I) * Wp + (w + s.pad) / s.stride + J) * s.K;
                    for (int i = 0; i < words; ++i)
                        for (uint64_t word = *bits++; word; word &= word - 1) {
                            key[n] = (64 * i + __builtin_ctzll(word)) * kinds + kind;
                            at[n] = row;
                            ++start[key[n++] + 1];
                        }
                }
        for (size_t k = 1; k < start.size(); ++k) start[k] += start[k - 1];
        for (int e = 0; e < n; ++e) sorted[start[key[e]]++] = at[e];
        for (size_t k = start.size() - 1; k > 0; --k) start[k] = start[k - 1];
        start[0] = 0;
        return n;
    }

    // N taps side by side, R vectors each, of the spikes from..to; `row` is the first tap's place relative to a spike's.
    template <int N, int R>
    void sum(int from, int to, int64_t row, float* out, int step) const {
        lanes total[N][R] = {};
        for (int e = from; e < to; ++e) {
            const float* p = &g[sorted[e] + row];
            for (int t = 0; t < N; ++t)
                for (int r = 0; r < R; ++r) total[t][r] += *(const lanes*)(p - t * s.K + WIDTH * r);
        }
        for (int t = 0; t < N; ++t)
            for (int r = 0; r < R; ++r) *(lanes*)(out + t * step + WIDTH * r) += total[t][r];
    }

    void add(float* gradient) const {
        for (int k = 0; k < s.C * kinds; ++k) {
            const int from = start[k], to = start[k + 1], c = k / kinds, ra = k % kinds / s.stride, rb = k % s.stride;
            if (from == to) continue;
            for (int i = ra; i < s.kh; i += s.stride)
                for (int j = rb; j < s.kw;) {
                    const int left = (s.kw - j + s.stride - 1) / s.stride, n = left < 3 ? left : 3;
                    const int64_t row = -(int64_t(i / s.stride) * Wp + j / s.stride) * s.K;
                    float* out = gradient + ((int64_t(i) * s.kw + j) * s.C + c) * s.K;
                    const int step = s.stride * s.C * s.K;
                    blocks<THREE>(s.K, [&](auto R, int first) {
                        if (n == 3) sum<3, R>(from, to, row + first, out + first, step);
                        else if (n == 2) sum<2, R>(from, to, row + first, out + first, step);
                        else sum<1, R>(from, to, row + first, out + first, step);
                    });
                    j += n * s.stride;
                }
        }
    }
};

// Gradient of the weights, (K, kh, kw, C), from g (M, Ho, Wo, K); room: threads times as many numbers.
extern "C" void weight_gradient(const uint64_t* bits, const void* g, int dtype, float* gradient, float* room, int64_t M,
                                const Shape* shape, int threads) {
    const Shape s = *shape;
    const int64_t words = (s.C + 63) / 64, size = int64_t(s.kh) * s.kw * s.C * s.K;
    const int64_t pixels = int64_t(s.Ho) * s.Wo * s.K * (dtype ? 2 : 4);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int part = 0; part < threads; ++part) {
        const int64_t begin = M * part / threads, end = M * (part + 1) / threads;
        Gradient work(s, end - begin);
        float* mine = room + part * size;
        std::memset(mine, 0, size * sizeof(float));
        for (int64_t m = begin; m < end; m += work.images) {
            const int64_t count = std::min(work.images, end - m);
            if (!work.sort(bits + m * s.H * s.W * words, count)) continue;
            for (int64_t i = 0; i < count; ++i) work.frame((const char*)g + (m + i) * pixels, dtype, i);
            work.add(mine);
        }
    }
    for (int part = 1; part < threads; ++part)
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t i = 0; i < size; ++i) room[i] += room[part * size + i];
    transpose(room, gradient, size / s.K, s.K, 0, threads);
}
