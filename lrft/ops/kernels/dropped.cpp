// Products of a frozen weight with the few entries that dropout took from its input.
//
// W (outs, ins) is a weight, `packed` its transpose by blocks of 256 outputs, (blocks, ins, 256), where the last one is
// filled up with zeros to a multiple of 16. x and dy have a row a token. `zeros` are flat positions in (tokens, ins),
// ascending. Every number of a result is summed by one thread in one order: the number of threads changes no bit.

#include <type_traits>

#include "lanes.h"

using namespace lrft;

namespace {

constexpr int VECTORS = 16;  // of a block, whose share of a weight stays in a cache while all tokens meet it
constexpr int64_t BLOCK = VECTORS * LANES;

// The call of `f` with a number of vectors that the compiler knows.
template <int Q, class F>
inline void of_vectors(int64_t vectors, const F& f) {
    if constexpr (Q > 0) {
        if (vectors == Q) return f(std::integral_constant<int, Q>());
        return of_vectors<Q - 1>(vectors, f);
    }
}

// What the products of one weight share.
struct Map {
    const int64_t* zeros;
    int64_t count;
    const float* packed;
    int64_t tokens, ins, outs;
    int threads;

    // Calls `f` with a token, the dropped entries [first, end) it has, and a block of outputs.
    template <class F>
    void each(const F& f) const {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int part = 0; part < threads; part++) {
            const Share share(tokens, part, threads);
            const int64_t begin = std::lower_bound(zeros, zeros + count, share.from * ins) - zeros;
            for (int64_t out = 0; out < outs; out += BLOCK) {
                int64_t first = begin;
                for (int64_t token = share.from; token < share.to; token++) {
                    int64_t end = first;
                    while (end < count && zeros[end] < (token + 1) * ins) end++;
                    f(token, first, end, out, std::min(BLOCK, outs - out));
                    first = end;
                }
            }
        }
    }
};

// y becomes y + less u + bias, with u = y - (what was dropped of x) W^T.
template <class T>
void product(const Map& map, const float* x, float* y, T* u, const float* less, const float* bias) {
    map.each([&](int64_t token, int64_t first, int64_t end, int64_t at, int64_t width) {
        const float *entries = x + token * map.ins, *block = map.packed + at * map.ins;
        const int64_t start = token * map.ins, place = token * map.outs + at;
        of_vectors<VECTORS>((width + LANES - 1) / LANES, [&](auto known) {
            constexpr int Q = decltype(known)::value;
            const int64_t last = width - (Q - 1) * LANES;
            Lanes sums[Q];
            for (int q = 0; q < Q; q++) sums[q] = load(y + place + LANES * q, q < Q - 1 ? LANES : last);
            for (int64_t k = first; k < end; k++) {
                const int64_t column = map.zeros[k] - start;
                for (int q = 0; q < Q; q++) sums[q] -= entries[column] * load(block + column * BLOCK + LANES * q);
            }
            for (int q = 0; q < Q; q++) {
                const int64_t count = q < Q - 1 ? LANES : last, where = at + LANES * q;
                store(u + place + LANES * q, sums[q], count);
                Lanes whole = load(y + place + LANES * q, count) + load(less + where, count) * sums[q];
                if (bias) whole += load(bias + where, count);
                store(y + place + LANES * q, whole, count);
            }
        });
    });
}

}  // namespace

extern "C" {

// The weight (outs, ins), transposed and padded.
void lrft_pack(const float* weight, float* packed, int64_t ins, int64_t outs, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t out = 0; out < outs; out += LANES) {
        const int64_t there = std::min(LANES, outs - out);
        float* block = packed + out / BLOCK * BLOCK * ins + out % BLOCK;
        for (int64_t in = 0; in < ins; in += LANES) {
            const int64_t width = std::min(LANES, ins - in);
            Lanes rows[LANES];
            for (int64_t k = 0; k < LANES; k++) rows[k] = load(weight + (out + k) * ins + in, k < there ? width : 0);
            transpose(rows);
            for (int64_t k = 0; k < width; k++) store(block + (in + k) * BLOCK, rows[k]);
        }
    }
}

// y (tokens, outs) is x W^T and becomes y + less u + bias, with u = (kept entries of x) W^T.
void lrft_dropped_product(const float* x, const int64_t* zeros, int64_t count, const float* packed, float* y, void* u,
                          int64_t half, const float* less, const float* bias, int64_t tokens, int64_t ins, int64_t outs,
                          int threads) {
    const Map map{zeros, count, packed, tokens, ins, outs, threads};
    if (half)
        product(map, x, y, static_cast<Half*>(u), less, bias);
    else
        product(map, x, y, static_cast<float*>(u), less, bias);
}

// Adds the entries of dy W that `zeros` name to `found` (count).
void lrft_dropped_dots(const float* dy, const int64_t* zeros, int64_t count, const float* packed, float* found,
                       int64_t tokens, int64_t ins, int64_t outs, int threads) {
    const Map map{zeros, count, packed, tokens, ins, outs, threads};
    map.each([&](int64_t token, int64_t first, int64_t end, int64_t at, int64_t width) {
        if (first == end) return;
        const float *row = dy + token * outs + at, *block = packed + at * ins;
        of_vectors<VECTORS>((width + LANES - 1) / LANES, [&](auto known) {
            constexpr int Q = decltype(known)::value;
            Lanes held[Q];
            for (int q = 0; q < Q; q++) held[q] = load(row + LANES * q, q < Q - 1 ? LANES : width - q * LANES);
            for (int64_t k = first; k < end; k++) {
                const float* column = block + (zeros[k] - token * ins) * BLOCK;
                Lanes sums[4] = {};  // each waits for its own last one alone
                for (int q = 0; q < Q; q++) sums[q % 4] += held[q] * load(column + LANES * q);
                found[k] += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
            }
        });
    });
}

}  // extern "C"
