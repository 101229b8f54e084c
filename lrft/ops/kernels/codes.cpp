// Four-bit codes of a weight, by blocks that share a scale.

#include "lanes.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

using namespace lrft;

namespace {

// Of numbers in [-1, 1] how many of the 15 bounds are not at or above each; of no number all.
inline Signed place(const Lanes& scaled, const float* bounds) {
    Signed found = {};
    for (int k = 0; k < 15; k++) found += 1 + (bounds[k] >= scaled);  // a comparison that holds is -1
    return found;
}

template <class T>
void encode(const T* weight, const float* bounds, uint8_t* codes, float* scales, int64_t blocks, int64_t size,
            int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t block = 0; block < blocks; block++) {
        const T* from = weight + block * size;
        Lanes most = {};
        Signed none = {};
        for (int64_t at = 0; at < size; at += LANES) {
            const Lanes lanes = load(from + at);
            most = larger(lanes < 0 ? -lanes : lanes, most);
            none |= lanes != lanes;
        }
        float scale = most[0];
        for (int lane = 0; lane < LANES; lane++) {
            scale = std::max(scale, most[lane]);
            if (none[lane]) scale = __builtin_nanf("");
        }
        scales[block] = scale;
        const float inverse = 1.0f / (scale < 1e-38f ? 1e-38f : scale);
        for (int64_t at = 0; at < size; at += LANES) {
            Lanes scaled = load(from + at) * inverse;
            scaled = scaled < -1.0f ? all(-1.0f) : scaled > 1.0f ? all(1.0f) : scaled;
            const Signed found = place(scaled, bounds);
            uint8_t* to = codes + (block * size + at) / 2;
            for (int k = 0; k < LANES / 2; k++) to[k] = static_cast<uint8_t>(found[2 * k] << 4 | found[2 * k + 1]);
        }
    }
}

// Of 32 codes, the first of two in the upper half of a byte, the numbers that a table of 16 has for them.
inline void look_up(const uint8_t* codes, const Lanes& table, float* to) {
#ifdef __AVX512F__
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const __m512 of = as<__m512>(table);  // its place is the lowest four bits of an index, whatever is above them
    const Lanes first = as<Lanes>(_mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), of));
    const Lanes second = as<Lanes>(_mm512_permutexvar_ps(both, of));
    store(to, LRFT_PAIRED(first, second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    store(to + LANES, LRFT_PAIRED(first, second, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#else
    float of[LANES];
    store(of, table);
    for (int k = 0; k < LANES; k++) {
        to[2 * k] = of[codes[k] >> 4];
        to[2 * k + 1] = of[codes[k] & 15];
    }
#endif
}

}  // namespace

// Codes, the first of two in the upper half of a byte, and the largest magnitude of each of the `blocks` of `size` numbers,
// a multiple of 16. A number goes to the level whose bounds, 15 that rise, it lies between once its block is in [-1, 1].
extern "C" void lrft_encode_4bit(const void* weight, const float* bounds, uint8_t* codes, float* scales, int64_t half,
                                 int64_t blocks, int64_t size, int threads) {
    if (half)
        encode(static_cast<const Half*>(weight), bounds, codes, scales, blocks, size, threads);
    else
        encode(static_cast<const float*>(weight), bounds, codes, scales, blocks, size, threads);
}

// The `blocks` of `size` numbers, a multiple of 32, that codes stand for: levels (16) times the scale of the block, rounded
// to bfloat16 and written as float32. Scales are numbers, or codes of scale_levels (256), of which `per` in turn share one of
// `second`, plus `offset`, where scales are none.
extern "C" void lrft_decode_4bit(const uint8_t* codes, const float* levels, const float* scales,
                                 const uint8_t* scale_codes, const float* scale_levels, const float* second,
                                 const float* offset, float* to, int64_t blocks, int64_t size, int64_t per, int threads) {
    const Lanes of = load(levels);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t block = 0; block < blocks; block++) {
        float scale;
        if (scales) {
            scale = scales[block];
        } else {
            volatile float product = scale_levels[scale_codes[block]] * second[block / per];  // rounded, then added to
            scale = product + *offset;
        }
        const Lanes table = widened(narrowed(of * scale));
        for (int64_t at = block * size; at < (block + 1) * size; at += 2 * LANES) look_up(codes + at / 2, table, to + at);
    }
}
