// Norms, gates, rotations and sums over tokens: what a layer does to numbers between its products.
//
// T is float or Half; everything is computed in float32 and rounded once.

#include <cmath>

#include "lanes.h"

using namespace lrft;

namespace {

template <class T>
void normalize(const T* x, const float* weight, T* y, float* r, float eps, int64_t rows, int64_t d, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const T* from = x + row * d;
        Lanes squares = {};
        for (int64_t k = 0; k < d; k += LANES) {
            const Lanes lanes = load(from + k, d - k);
            squares += lanes * lanes;
        }
        r[row] = 1.0f / std::sqrt(sum(squares) / static_cast<float>(d) + eps);
        for (int64_t k = 0; k < d; k += LANES)
            store(y + row * d + k, load(from + k, d - k) * r[row] * load(weight + k, d - k), d - k);
    }
}

// With n = x r and g = dy weight: dx = r (g - n mean(g n)).
template <class T>
void normalize_back(const T* dy, const T* x, const float* r, const float* weight, T* dx, int64_t rows, int64_t d,
                    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * d;
        Lanes dots = {};
        for (int64_t k = 0; k < d; k += LANES)
            dots += load(dy + at + k, d - k) * load(weight + k, d - k) * load(x + at + k, d - k);
        const float mean = sum(dots) * r[row] / static_cast<float>(d);
        for (int64_t k = 0; k < d; k += LANES) {
            const Lanes g = load(dy + at + k, d - k) * load(weight + k, d - k), n = load(x + at + k, d - k) * r[row];
            store(dx + at + k, (g - n * mean) * r[row], d - k);
        }
    }
}

inline Lanes sigmoid(const Lanes& x) { return 1.0f / (1.0f + exponential(-x)); }

// silu(gate) * up.
template <class T>
void gate(const T* gate, const T* up, T* h, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < count; k += LANES) {
        const Lanes g = load(gate + k, count - k);
        store(h + k, g * sigmoid(g) * load(up + k, count - k), count - k);
    }
}

template <class T>
void gate_back(const T* dh, const T* gate, const T* up, T* dgate, T* dup, int64_t count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < count; k += LANES) {
        const Lanes d = load(dh + k, count - k), g = load(gate + k, count - k), s = sigmoid(g);
        store(dup + k, d * g * s, count - k);
        store(dgate + k, d * load(up + k, count - k) * s * (1.0f + g * (1.0f - s)), count - k);
    }
}

// A tensor of four axes whose last one lies together: what to go on by along the first three.
struct Strides {
    int64_t row, head, token;
};

// x * cos + swap(x) * sin, with swap (a, b) -> (-b, a) of the two halves of a head; `back` is the transpose of it.
template <class T>
void rotate(const T* x, const T* cos, const T* sin, T* y, bool back, int64_t rows, int64_t heads, int64_t tokens,
            int64_t d, const Strides& at, const Strides& angles, int threads) {
    const int64_t half = d / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t place = 0; place < rows * tokens; place++) {
        const int64_t row = place / tokens, token = place % tokens, angle = row * angles.row + token * angles.token;
        for (int64_t head = 0; head < heads; head++) {
            const int64_t start = row * at.row + head * at.head + token * at.token;
            for (int64_t k = 0; k < half; k += LANES) {
                const int64_t count = half - k;
                const Lanes a = load(x + start + k, count), b = load(x + start + half + k, count);
                Lanes first = load(sin + angle + k, count), second = load(sin + angle + half + k, count);
                if (back) {  // the sine that met the other half
                    const Lanes kept = first;
                    first = -second;
                    second = -kept;
                }
                store(y + start + k, a * load(cos + angle + k, count) - b * first, count);
                store(y + start + half + k, b * load(cos + angle + half + k, count) + a * second, count);
            }
        }
    }
}

template <class T>
void column_dots(const T* a, const T* b, float* sums, int64_t tokens, int64_t outs, int threads) {
    constexpr int64_t COLUMNS = 64 * LANES;  // whose sums stay in the first cache
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        const Share share(outs, part, threads, LANES);
        for (int64_t from = share.from; from < share.to; from += COLUMNS) {
            const int64_t width = std::min(COLUMNS, share.to - from);
            Lanes found[COLUMNS / LANES] = {};
            for (int64_t token = 0; token < tokens; token++)
                for (int64_t k = 0; k < width; k += LANES) {
                    const int64_t at = token * outs + from + k;
                    found[k / LANES] += load(a + at, width - k) * load(b + at, width - k);
                }
            for (int64_t k = 0; k < width; k += LANES) store(sums + from + k, found[k / LANES], width - k);
        }
    }
}

}  // namespace

// `half` says whether what is void holds bfloat16.
#define OF_EITHER(call)       \
    if (half) {               \
        typedef Half T;       \
        call;                 \
    } else {                  \
        typedef float T;      \
        call;                 \
    }
#define IN(name) static_cast<const T*>(name)
#define OUT(name) static_cast<T*>(name)

extern "C" {

void lrft_normalize(const void* x, const float* weight, void* y, float* r, int64_t half, float eps, int64_t rows,
                    int64_t d, int threads) {
    OF_EITHER(normalize(IN(x), weight, OUT(y), r, eps, rows, d, threads))
}

void lrft_normalize_back(const void* dy, const void* x, const float* r, const float* weight, void* dx, int64_t half,
                         int64_t rows, int64_t d, int threads) {
    OF_EITHER(normalize_back(IN(dy), IN(x), r, weight, OUT(dx), rows, d, threads))
}

void lrft_gate(const void* of, const void* up, void* h, int64_t half, int64_t count, int threads) {
    OF_EITHER(gate(IN(of), IN(up), OUT(h), count, threads))
}

void lrft_gate_back(const void* dh, const void* of, const void* up, void* dgate, void* dup, int64_t half, int64_t count,
                    int threads) {
    OF_EITHER(gate_back(IN(dh), IN(of), IN(up), OUT(dgate), OUT(dup), count, threads))
}

void lrft_rotate(const void* x, const void* cos, const void* sin, void* y, int64_t half, int64_t back, int64_t rows,
                 int64_t heads, int64_t tokens, int64_t d, int64_t row, int64_t head, int64_t token, int64_t angle_row,
                 int64_t angle_token, int threads) {
    const Strides at{row, head, token}, angles{angle_row, 0, angle_token};
    OF_EITHER(rotate(IN(x), IN(cos), IN(sin), OUT(y), back, rows, heads, tokens, d, at, angles, threads))
}

void lrft_column_dots(const void* a, const void* b, float* sums, int64_t half, int64_t tokens, int64_t outs,
                      int threads) {
    OF_EITHER(column_dots(IN(a), IN(b), sums, tokens, outs, threads))
}

// The scores of the targets become cross-entropies of the rows of scores (rows, size), and those softmax less one there.
void lrft_softmax_loss(float* scores, const int64_t* targets, float* losses, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        float* of = scores + row * size;
        float top = of[0];
        Lanes tops = all(top);
        int64_t k = 0;
        for (; k + LANES <= size; k += LANES) tops = larger(load(of + k), tops);
        for (int lane = 0; lane < LANES; lane++) top = std::max(top, tops[lane]);
        for (int64_t left = k; left < size; left++) top = std::max(top, of[left]);
        Lanes masses = {};
        for (k = 0; k < size; k += LANES) {
            Lanes lanes = load(of + k, size - k) - top;
            if (size - k < LANES)
                for (int lane = static_cast<int>(size - k); lane < LANES; lane++) lanes[lane] = -INFINITY;
            lanes = exponential(lanes);
            masses += lanes;
            store(of + k, lanes, size - k);
        }
        const float mass = sum(masses), share = 1.0f / mass;
        for (k = 0; k < size; k += LANES) store(of + k, load(of + k, size - k) * share, size - k);
        of[targets[row]] -= 1.0f;
        losses[row] = std::log(mass) + top - losses[row];
    }
}

// `count` numbers in [-1, 1) from the place on of the sequence of a key, integers of 32 bits that wrap around.
void lrft_hashed(float* out, int64_t count, int64_t place, int64_t key, int threads) {
    const uint32_t first = static_cast<uint32_t>(place), mixed = static_cast<uint32_t>(key);
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t k = 0; k < count; k++) {
        uint32_t z = first + static_cast<uint32_t>(k);
        z = ((z ^ (z >> 16)) ^ mixed) * 0x85EBCA6Bu;
        z = ((z ^ (z >> 13)) ^ mixed) * 0xC2B2AE35u;
        z = (z ^ (z >> 16)) ^ mixed;
        out[k] = static_cast<float>(static_cast<int32_t>(z) >> 8) * 1.1920928955078125e-7f;
    }
}

}  // extern "C"
