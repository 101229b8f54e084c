// Four-bit codes of a weight, by blocks that share a scale.

#include "lanes.h"

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
