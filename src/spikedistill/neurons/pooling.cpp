// Max pooling of maps that lie channels last, as torch's. Called by pooling.py; plain C interface.
//
// x (M, H, W, C), y (M, Ho, Wo, C); codes (M, Ho, Wo, C): which of the window's places has the value, row by row. dtype: 0 float32,
// 1 bfloat16. The first of equal values is taken; one that is not a number is taken before all others.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

struct Window {
    int32_t H, W, C, Ho, Wo, kernel, stride, pad;
};

constexpr int LANES = 16;  // channels at a time
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t words __attribute__((vector_size(4 * LANES)));
typedef int16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

// Wherever it lies: as a template's argument a vector has no alignment of its own.
template <class V>
static inline V load(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof(V));
    return v;
}
template <class V>
static inline void store(void* to, V v) {
    std::memcpy(to, &v, sizeof(V));
}

// What is compared: the value itself, or of bfloat16 a number of the same order (both zeros 0, what is no number above all).
template <class T>
struct Type;
template <>
struct Type<float> {
    typedef floats lanes;
    typedef words mask;
    static float key(float f) { return f; }
    static floats key(floats f) { return f; }
    static bool odd(float f) { return f != f; }
    static words odd(floats f) { return f != f; }
};
template <>
struct Type<int16_t> {
    typedef halves lanes;
    typedef halves mask;
    static int16_t key(int16_t u) {
        const int16_t ordered = int16_t(u ^ ((u >> 15) & 0x7fff));
        return odd(u) ? int16_t(0x7fff) : ordered == -1 ? int16_t(0) : ordered;
    }
    static halves key(halves u) {
        const halves ordered = u ^ ((u >> 15) & 0x7fff), zero = {}, all = zero + 0x7fff;
        return odd(u) ? all : ordered == -1 ? zero : ordered;
    }
    static bool odd(int16_t u) { return (u & 0x7fff) > 0x7f80; }
    static halves odd(halves u) { return (u & 0x7fff) > 0x7f80; }
};

// bfloat16 is rounded after each sum, to the nearest, of two the even one.
static inline float sum(float a, float b) { return a + b; }
static inline floats sum(floats a, floats b) { return a + b; }
static inline int16_t sum(int16_t a, int16_t b) {
    uint32_t u = uint32_t(uint16_t(a)) << 16, v = uint32_t(uint16_t(b)) << 16;
    float f, g;
    std::memcpy(&f, &u, 4);
    std::memcpy(&g, &v, 4);
    f += g;
    std::memcpy(&u, &f, 4);
    return f != f ? int16_t(0x7fc0) : int16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline halves sum(halves a, halves b) {
    const words u = __builtin_convertvector(a, words) << 16, v = __builtin_convertvector(b, words) << 16;
    const floats f = (floats)u + (floats)v;
    const words bits = (words)f, near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, none = words{} + 0x7fc0;
    return __builtin_convertvector(f != f ? none : near, halves);
}

// A window's part within the map: rows and columns from the first to before the last.
struct Part {
    int top, left, i0, i1, j0, j1;
    Part(const Window& s, int ho, int wo)
        : top(ho * s.stride - s.pad), left(wo * s.stride - s.pad), i0(std::max(0, -top)), i1(std::min(s.kernel, s.H - top)),
          j0(std::max(0, -left)), j1(std::min(s.kernel, s.W - left)) {}
};

// Channels c and on, V at once: a register holds the largest so far, another its place.
template <class T, class V, class M, class B>
static inline void largest(const T* x, T* out, uint8_t* codes, const Part& p, const Window& s, int c) {
    const T* at = x + ((int64_t)(p.top + p.i0) * s.W + p.left + p.j0) * s.C + c;
    V most = load<V>(at), key = Type<T>::key(most);
    M place = M(M{} + int16_t(p.i0 * s.kernel + p.j0));
    for (int i = p.i0; i < p.i1; ++i) {
        for (int j = p.j0; j < p.j1; ++j) {
            const V v = load<V>(x + ((int64_t)(p.top + i) * s.W + p.left + j) * s.C + c), k = Type<T>::key(v);
            const auto more = (k > key) | Type<T>::odd(v);
            most = more ? v : most;
            key = more ? k : key;
            place = more ? M(M{} + int16_t(i * s.kernel + j)) : place;
        }
    }
    store(out + c, most);
    if (codes) {
        if constexpr (sizeof(B) == 1)
            codes[c] = uint8_t(place);
        else
            store(codes + c, __builtin_convertvector(place, B));
    }
}

template <class T>
static void pool(const T* x, T* y, uint8_t* codes, int64_t M, const Window& s, int threads) {
    typedef typename Type<T>::lanes lanes;
    typedef typename Type<T>::mask mask;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < M * s.Ho; ++row) {
        const T* image = x + row / s.Ho * s.H * s.W * s.C;
        for (int wo = 0; wo < s.Wo; ++wo) {
            const Part p(s, int(row % s.Ho), wo);
            const int64_t at = (row * s.Wo + wo) * s.C;
            uint8_t* code = codes ? codes + at : nullptr;
            int c = 0;
            for (; c + LANES <= s.C; c += LANES) largest<T, lanes, mask, bytes>(image, y + at, code, p, s, c);
            for (; c < s.C; ++c) largest<T, T, int16_t, uint8_t>(image, y + at, code, p, s, c);
        }
    }
}

// The windows that a row or column lies in: from the first to the last.
struct Reach {
    int first, last;
    Reach(int at, int windows, const Window& s)
        : first(std::max(0, (at + s.pad - s.kernel + s.stride) / s.stride)), last(std::min(windows - 1, (at + s.pad) / s.stride)) {}
};

// Channels c and on of the pixel (h, w), V at once: what its windows send, in their order.
template <class V, class M, class B, class T>
static inline void gathered(
    const T* g, const uint8_t* codes, T* to, int h, int w, const Reach& down, const Reach& right, const Window& s, int c) {
    V all = {};
    bool first = true;
    for (int ho = down.first; ho <= down.last; ++ho) {
        for (int wo = right.first; wo <= right.last; ++wo) {
            const int64_t at = ((int64_t)ho * s.Wo + wo) * s.C + c;
            const auto place = int16_t((h + s.pad - ho * s.stride) * s.kernel + w + s.pad - wo * s.stride);
            V sent;
            if constexpr (sizeof(B) == 1)
                sent = codes[at] == place ? g[at] : V{};
            else
                sent = __builtin_convertvector(load<B>(codes + at), M) == place ? load<V>(g + at) : V{};
            all = first ? sent : sum(all, sent);
            first = false;
        }
    }
    store(to + c, all);
}

template <class T>
static void spread(const T* g, const uint8_t* codes, T* gx, int64_t M, const Window& s, int threads) {
    typedef typename Type<T>::lanes lanes;
    typedef typename Type<T>::mask mask;
    std::vector<Reach> columns;
    for (int w = 0; w < s.W; ++w) columns.emplace_back(w, s.Wo, s);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < M * s.H; ++row) {
        const int64_t image = row / s.H * s.Ho * s.Wo * s.C;
        const int h = int(row % s.H);
        const Reach down(h, s.Ho, s);
        for (int w = 0; w < s.W; ++w) {
            T* to = gx + (row * s.W + w) * s.C;
            int c = 0;
            const Reach& right = columns[w];
            for (; c + LANES <= s.C; c += LANES) gathered<lanes, mask, bytes>(g + image, codes + image, to, h, w, down, right, s, c);
            for (; c < s.C; ++c) gathered<T, int16_t, uint8_t>(g + image, codes + image, to, h, w, down, right, s, c);
        }
    }
}

extern "C" void max_pool(const void* x, void* y, uint8_t* codes, int dtype, int64_t M, const Window* s, int threads) {
    if (dtype)
        pool((const int16_t*)x, (int16_t*)y, codes, M, *s, threads);
    else
        pool((const float*)x, (float*)y, codes, M, *s, threads);
}

extern "C" void max_pool_gradient(
    const void* g, const uint8_t* codes, void* gx, int dtype, int64_t M, const Window* s, int threads) {
    if (dtype)
        spread((const int16_t*)g, codes, (int16_t*)gx, M, *s, threads);
    else
        spread((const float*)g, codes, (float*)gx, M, *s, threads);
}
