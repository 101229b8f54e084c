// Sixteen numbers at once, in float32, of arrays that hold float32 or bfloat16.
//
// Compilers lower the vector types to what the processor has. A bfloat16 is held as the upper half of a float32.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace lrft {

constexpr int64_t LANES = 16;

// Four bytes aligned: rows begin anywhere.
typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Signed __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
using Half = uint16_t;

template <class To, class From>
inline To as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline Lanes all(float value) { return Lanes{} + value; }

inline Lanes widened(const Halves& halves) { return as<Lanes>(__builtin_convertvector(halves, Bits) << 16); }

// To the nearest, ties to even; what is no number stays none.
inline Halves narrowed(const Lanes& lanes) {
    const Bits bits = as<Bits>(lanes);
    const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, none = (bits >> 16) | 64;
    return __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? none : nearest, Halves);
}

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline Lanes load(const Half* from) { return widened(*reinterpret_cast<const Halves*>(from)); }
inline void store(float* to, const Lanes& lanes) { *reinterpret_cast<Lanes*>(to) = lanes; }
inline void store(Half* to, const Lanes& lanes) { *reinterpret_cast<Halves*>(to) = narrowed(lanes); }

// The same of the first `count` of them; the others are 0.
inline Lanes load(const float* from, int64_t count) {
    if (count >= LANES) return load(from);
    Lanes lanes = {};
    std::memcpy(&lanes, from, count * sizeof(float));
    return lanes;
}

inline Lanes load(const Half* from, int64_t count) {
    if (count >= LANES) return load(from);
    Halves halves = {};
    std::memcpy(&halves, from, count * sizeof(Half));
    return widened(halves);
}

inline void store(float* to, const Lanes& lanes, int64_t count) {
    if (count >= LANES) return store(to, lanes);
    std::memcpy(to, &lanes, count * sizeof(float));
}

inline void store(Half* to, const Lanes& lanes, int64_t count) {
    if (count >= LANES) return store(to, lanes);
    const Halves halves = narrowed(lanes);
    std::memcpy(to, &halves, count * sizeof(Half));
}

inline float sum(const Lanes& lanes) {
    float found = 0;
    for (int k = 0; k < LANES; k++) found += lanes[k];
    return found;
}

inline Lanes larger(const Lanes& a, const Lanes& b) { return a > b ? a : b; }

// e^x: to 2 units in the last place; 0 below -87.3, 2^127.4 above 88.3, no number for none.
inline Lanes exponential(Lanes x) {
    const auto none = x < -87.3f;
    x = x > 88.3f ? all(88.3f) : none ? all(-87.3f) : x;
    const Lanes whole = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    const Lanes rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Lanes y = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * (rest * rest) + rest + 1.0f;
    const Signed power = (__builtin_convertvector(whole, Signed) + 127) << 23;
    return none ? Lanes{} : y * as<Lanes>(power);
}

// Sixteen rows of sixteen become its columns: halves of pairs change places, at ever smaller distances.
#ifdef __clang__
#define LRFT_PAIRED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LRFT_PAIRED(a, b, ...) __builtin_shuffle(a, b, Signed{__VA_ARGS__})
#endif
#define LRFT_LIST(...) __VA_ARGS__
#define LRFT_EXCHANGE(distance, first, second)                        \
    for (int k = 0; k < LANES; k++) {                            \
        if (k & distance) continue;                              \
        const Lanes upper = rows[k], lower = rows[k + distance]; \
        rows[k] = LRFT_PAIRED(upper, lower, first);                   \
        rows[k + distance] = LRFT_PAIRED(upper, lower, second);       \
    }

inline void transpose(Lanes* rows) {
    LRFT_EXCHANGE(8, LRFT_LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
             LRFT_LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    LRFT_EXCHANGE(4, LRFT_LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
             LRFT_LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    LRFT_EXCHANGE(2, LRFT_LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
             LRFT_LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    LRFT_EXCHANGE(1, LRFT_LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
             LRFT_LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
}

// What a thread has of `count` things that come in groups of `step`.
struct Share {
    int64_t from, to;

    Share(int64_t count, int part, int parts, int64_t step = 1) {
        const int64_t groups = (count + step - 1) / step, each = (groups + parts - 1) / parts;
        from = std::min(count, part * each * step);
        to = std::min(count, (part + 1) * each * step);
    }
};

}  // namespace lrft
