// Causal attention within documents, by tiles of 64 queries and 64 keys, of which nothing is kept but the logarithm of
// what every softmax divides by.
//
// The G query heads that share a head of keys are rows of one tile. T is float or Half; everything is computed in
// float32. A task is a document, a head of keys and a block of queries; every thread has tasks of about the same work.
// The gradients of keys and values are summed by parts of the tasks: parts that share no document and head of keys, or as
// many as there are sums, which are added up in the end. Neither follows the number of threads.

#include <cmath>
#include <limits>
#include <vector>

#include "lanes.h"

using namespace lrft;

namespace {

constexpr int64_t BLOCK = 64;
constexpr int ROWS = 4, VECTORS = 4;  // of the sums that stay in registers
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// C += A B of `depth` products, a number of A standing at a[row * arow + k * acol].
template <int R, int Q>
inline void tile(const float* a, int64_t arow, int64_t acol, const float* b, int64_t brow, float* c, int64_t crow,
                 int64_t depth) {
    Lanes sums[R][Q];
    for (int r = 0; r < R; r++)
        for (int q = 0; q < Q; q++) sums[r][q] = load(c + r * crow + LANES * q);
    for (int64_t k = 0; k < depth; k++) {
        Lanes row[Q];
        for (int q = 0; q < Q; q++) row[q] = load(b + k * brow + LANES * q);
        for (int r = 0; r < R; r++) {
            const float of = a[r * arow + k * acol];
            for (int q = 0; q < Q; q++) sums[r][q] += of * row[q];
        }
    }
    for (int r = 0; r < R; r++)
        for (int q = 0; q < Q; q++) store(c + r * crow + LANES * q, sums[r][q]);
}

template <int Q>
inline void add_rows(const float* a, int64_t arow, int64_t acol, const float* b, int64_t brow, float* c, int64_t crow,
                     int64_t rows, int64_t depth) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS)
        tile<ROWS, Q>(a + row * arow, arow, acol, b, brow, c + row * crow, crow, depth);
    for (; row < rows; row++) tile<1, Q>(a + row * arow, arow, acol, b, brow, c + row * crow, crow, depth);
}

// The same for as many columns as there are, a multiple of sixteen.
inline void add_product(const float* a, int64_t arow, int64_t acol, const float* b, int64_t brow, float* c,
                        int64_t crow, int64_t rows, int64_t columns, int64_t depth) {
    int64_t at = 0;
    for (; at + VECTORS * LANES <= columns; at += VECTORS * LANES)
        add_rows<VECTORS>(a, arow, acol, b + at, brow, c + at, crow, rows, depth);
    for (; at < columns; at += LANES) add_rows<1>(a, arow, acol, b + at, brow, c + at, crow, rows, depth);
}

// Where a tensor of four axes goes on along row, head and token; a head's numbers lie together.
struct Strides {
    int64_t row, head, token;
    int64_t at(int64_t r, int64_t h, int64_t t) const { return r * row + h * head + t * token; }
};

// As `lrft.ops.native_attention` writes it, 64 bits each.
struct Given {
    int64_t rows, heads, groups, tokens, d, window, documents;
    Strides q, k, v, o;
};

struct Document {
    int64_t row, start, end;
};

struct Task {
    int64_t document, group, block;
};

inline int64_t first_block(const Given& given, int64_t block) {
    return given.window > 0 ? std::max<int64_t>(0, block * BLOCK - given.window + 1) / BLOCK : 0;
}

// The tasks of a part, in order: those that begin in its share of all pairs of blocks, or `whole` those of the documents
// and heads of keys that do.
std::vector<Task> tasks_of(const Given& given, const Document* documents, int part, int parts, bool whole) {
    int64_t total = 0;
    for (int pass = 0; pass < 2; pass++) {
        int64_t before = 0;
        std::vector<Task> found;
        for (int64_t document = 0; document < given.documents; document++) {
            const int64_t blocks = (documents[document].end - documents[document].start + BLOCK - 1) / BLOCK;
            for (int64_t group = 0; group < given.groups; group++) {
                const int64_t begun = before;
                for (int64_t block = 0; block < blocks; block++) {
                    const bool own = pass && (whole ? begun : before) * parts / total == part;
                    if (own) found.push_back({document, group, block});
                    before += block + 1 - first_block(given, block);
                }
            }
        }
        if (pass) return found;
        total = before;
    }
    return {};
}

// Keys and values of one document and head, widened, and their transposes by blocks; filled as blocks are met.
struct Pair {
    std::vector<float> k, v, kt, vt;
    std::vector<char> filled;
    int64_t document = -1, group = -1;

    template <class T>
    void begin(const Given& given, const Document& of, const Task& task, const T*, bool both) {
        if (document == task.document && group == task.group) return;
        document = task.document;
        group = task.group;
        const int64_t blocks = (of.end - of.start + BLOCK - 1) / BLOCK, size = blocks * BLOCK * given.d;
        filled.assign(blocks, 0);
        v.resize(size);
        kt.resize(size);
        if (both) {
            k.resize(size);
            vt.resize(size);
        }
    }

    template <class T>
    void fill(const Given& given, const Document& of, const T* key, const T* value, int64_t block, bool both) {
        if (filled[block]) return;
        filled[block] = 1;
        const int64_t first = block * BLOCK, there = std::min(BLOCK, of.end - of.start - first), d = given.d;
        for (int64_t at = 0; at < BLOCK; at += LANES)
            for (int64_t column = 0; column < d; column += LANES) {
                const int64_t place = (first + at) * d + column, turned = first * d + column * BLOCK + at;
                Lanes keys[LANES] = {}, values[LANES] = {};
                for (int64_t n = 0; n < LANES && at + n < there; n++) {
                    const int64_t token = of.start + first + at + n;
                    keys[n] = load(key + given.k.at(of.row, group, token) + column);
                    values[n] = load(value + given.v.at(of.row, group, token) + column);
                }
                for (int64_t n = 0; n < LANES; n++) {
                    store(v.data() + place + n * d, values[n]);
                    if (both) store(k.data() + place + n * d, keys[n]);
                }
                transpose(keys);
                for (int64_t n = 0; n < LANES; n++) store(kt.data() + turned + n * BLOCK, keys[n]);
                if (!both) continue;
                transpose(values);
                for (int64_t n = 0; n < LANES; n++) store(vt.data() + turned + n * BLOCK, values[n]);
            }
    }
};

// What a thread computes with, and the rows of its present task.
struct Desk {
    std::vector<float> q, scores, o, slopes, dq, d_o;
    std::vector<float> top, mass;
    int64_t queries = 0, rows = 0, each = 0;  // tokens of the block, rows of the tile, query heads of a head of keys

    void begin(const Given& given, const Document& of, const Task& task) {
        each = given.heads / given.groups;
        queries = std::min(BLOCK, of.end - of.start - task.block * BLOCK);
        rows = each * queries;
        q.resize(rows * given.d);
        scores.resize(rows * BLOCK);
        top.resize(rows);
        mass.resize(rows);
    }

    // Calls f with a row, the query head and the token that it stands for.
    template <class F>
    void each_row(const Document& of, const Task& task, const F& f) const {
        for (int64_t row = 0; row < rows; row++)
            f(row, task.group * each + row / queries, of.start + task.block * BLOCK + row % queries);
    }

    template <class T>
    void read(std::vector<float>& to, const Given& given, const Document& of, const Task& task, const T* from,
              const Strides& at, float scale) {
        to.resize(rows * given.d);
        each_row(of, task, [&](int64_t row, int64_t head, int64_t token) {
            const T* numbers = from + at.at(of.row, head, token);
            for (int64_t k = 0; k < given.d; k += LANES) store(to.data() + row * given.d + k, load(numbers + k) * scale);
        });
    }

    // Scores of the block's queries with the keys of another block, -inf where a query may not see a key.
    void score(const Given& given, const Task& task, const float* kt, int64_t keys) {
        std::fill(scores.begin(), scores.begin() + rows * BLOCK, 0.0f);
        add_product(q.data(), given.d, 1, kt, BLOCK, scores.data(), BLOCK, rows, BLOCK, given.d);
        const int64_t ahead = (task.block - keys) * BLOCK;  // of its first query, seen from the first key
        const bool edge = given.window > 0 && ahead + queries - 1 >= given.window;
        if (ahead > 0 && !edge) return;
        for (int64_t row = 0; row < rows; row++) {
            const int64_t query = ahead + row % queries;
            float* of = scores.data() + row * BLOCK;
            for (int64_t key = query + 1; key < BLOCK; key++) of[key] = NOTHING;
            if (edge)
                for (int64_t key = 0; key <= std::min(query - given.window, BLOCK - 1); key++) of[key] = NOTHING;
        }
    }
};

template <class T>
void attend(const Given& given, const Document* documents, const T* q, const T* k, const T* v, T* o, float* logs,
            float scale, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int part = 0; part < threads; part++) {
        Pair pair;
        Desk desk;
        for (const Task& task : tasks_of(given, documents, part, threads, false)) {
            const Document& of = documents[task.document];
            const int64_t d = given.d;
            pair.begin(given, of, task, k, false);
            desk.begin(given, of, task);
            desk.read(desk.q, given, of, task, q, given.q, scale);
            desk.o.assign(desk.rows * d, 0.0f);
            std::fill(desk.top.begin(), desk.top.end(), NOTHING);
            std::fill(desk.mass.begin(), desk.mass.end(), 0.0f);
            for (int64_t keys = first_block(given, task.block); keys <= task.block; keys++) {
                pair.fill(given, of, k, v, keys, false);
                desk.score(given, task, pair.kt.data() + keys * BLOCK * d, keys);
                for (int64_t row = 0; row < desk.rows; row++) {
                    float *of_row = desk.scores.data() + row * BLOCK, *sums = desk.o.data() + row * d;
                    Lanes tops = load(of_row);
                    for (int64_t at = LANES; at < BLOCK; at += LANES) tops = larger(load(of_row + at), tops);
                    float top = desk.top[row];
                    for (int lane = 0; lane < LANES; lane++) top = std::max(top, tops[lane]);
                    const float from = top == NOTHING ? 0.0f : top;  // of a row that has seen no key yet
                    const float less = std::exp(desk.top[row] - from);
                    Lanes masses = {};
                    for (int64_t at = 0; at < BLOCK; at += LANES) {
                        const Lanes p = exponential(load(of_row + at) - from);
                        masses += p;
                        store(of_row + at, p);
                    }
                    desk.mass[row] = desk.mass[row] * less + sum(masses);
                    desk.top[row] = top;
                    if (less == 1.0f) continue;
                    for (int64_t at = 0; at < d; at += LANES) store(sums + at, load(sums + at) * less);
                }
                add_product(desk.scores.data(), BLOCK, 1, pair.v.data() + keys * BLOCK * d, d, desk.o.data(), d,
                            desk.rows, d, BLOCK);
            }
            desk.each_row(of, task, [&](int64_t row, int64_t head, int64_t token) {
                T* to = o + given.o.at(of.row, head, token);
                const float share = 1.0f / desk.mass[row];
                for (int64_t at = 0; at < d; at += LANES) store(to + at, load(desk.o.data() + row * d + at) * share);
                logs[(of.row * given.heads + head) * given.tokens + token] = desk.top[row] + std::log(desk.mass[row]);
            });
        }
    }
}

// `sums` are (buffers, 2, rows, groups, tokens, d) zeros: one for all parts, or one for each.
template <class T>
void pull(const Given& given, const Document* documents, const T* q, const T* k, const T* v, const T* o,
          const float* logs, const T* d_o, T* dq, T* dk, T* dv, float* sums, int buffers, float scale, int threads) {
    const int64_t d = given.d, size = given.rows * given.groups * given.tokens * d;
    const int parts = buffers == 1 ? threads : buffers;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int part = 0; part < parts; part++) {
        Pair pair;
        Desk desk;
        for (const Task& task : tasks_of(given, documents, part, parts, buffers == 1)) {
            const Document& of = documents[task.document];
            float* d_keys = sums + 2 * (buffers == 1 ? 0 : part) * size + ((of.row * given.groups + task.group) * given.tokens + of.start) * d;
            float* d_values = d_keys + size;
            pair.begin(given, of, task, k, true);
            desk.begin(given, of, task);
            desk.read(desk.q, given, of, task, q, given.q, scale);
            desk.read(desk.d_o, given, of, task, d_o, given.o, 1.0f);
            desk.read(desk.o, given, of, task, o, given.o, 1.0f);
            desk.dq.assign(desk.rows * d, 0.0f);
            desk.slopes.resize(desk.rows * BLOCK);
            desk.each_row(of, task, [&](int64_t row, int64_t head, int64_t token) {
                Lanes dots = {};
                for (int64_t at = 0; at < d; at += LANES)
                    dots += load(desk.d_o.data() + row * d + at) * load(desk.o.data() + row * d + at);
                desk.mass[row] = sum(dots);
                desk.top[row] = logs[(of.row * given.heads + head) * given.tokens + token];
            });
            for (int64_t keys = first_block(given, task.block); keys <= task.block; keys++) {
                const int64_t first = keys * BLOCK, there = std::min(BLOCK, of.end - of.start - first);
                pair.fill(given, of, k, v, keys, true);
                desk.score(given, task, pair.kt.data() + first * d, keys);
                std::fill(desk.slopes.begin(), desk.slopes.end(), 0.0f);
                add_product(desk.d_o.data(), d, 1, pair.vt.data() + first * d, BLOCK, desk.slopes.data(), BLOCK,
                            desk.rows, BLOCK, d);
                for (int64_t row = 0; row < desk.rows; row++)
                    for (int64_t at = row * BLOCK; at < (row + 1) * BLOCK; at += LANES) {
                        const Lanes p = exponential(load(desk.scores.data() + at) - desk.top[row]);
                        store(desk.scores.data() + at, p);
                        store(desk.slopes.data() + at, p * (load(desk.slopes.data() + at) - desk.mass[row]));
                    }
                add_product(desk.scores.data(), 1, BLOCK, desk.d_o.data(), d, d_values + first * d, d, there, d,
                            desk.rows);
                add_product(desk.slopes.data(), 1, BLOCK, desk.q.data(), d, d_keys + first * d, d, there, d, desk.rows);
                add_product(desk.slopes.data(), BLOCK, 1, pair.k.data() + first * d, d, desk.dq.data(), d, desk.rows, d,
                            BLOCK);
            }
            desk.each_row(of, task, [&](int64_t row, int64_t head, int64_t token) {
                T* to = dq + given.q.at(of.row, head, token);
                for (int64_t at = 0; at < d; at += LANES) store(to + at, load(desk.dq.data() + row * d + at) * scale);
            });
        }
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t place = 0; place < given.rows * given.groups * given.tokens; place++) {
        const int64_t token = place % given.tokens, group = place / given.tokens % given.groups;
        const int64_t row = place / given.tokens / given.groups;
        for (int64_t at = 0; at < d; at += LANES) {
            Lanes keys = {}, values = {};
            for (int part = 0; part < buffers; part++) {
                keys += load(sums + 2 * part * size + place * d + at);
                values += load(sums + (2 * part + 1) * size + place * d + at);
            }
            store(dk + given.k.at(row, group, token) + at, keys);
            store(dv + given.v.at(row, group, token) + at, values);
        }
    }
}

}  // namespace

extern "C" {

// o (as `given.o` says) of q, k, v, and of every query the logarithm (rows, heads, tokens) of what its softmax divides by.
void lrft_attend(const int64_t* given, const int64_t* documents, const void* q, const void* k, const void* v, void* o,
                 float* logs, int64_t half, float scale, int threads) {
    const Given& of = *reinterpret_cast<const Given*>(given);
    const Document* all = reinterpret_cast<const Document*>(documents);
    if (half)
        attend(of, all, static_cast<const Half*>(q), static_cast<const Half*>(k), static_cast<const Half*>(v),
               static_cast<Half*>(o), logs, scale, threads);
    else
        attend(of, all, static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v),
               static_cast<float*>(o), logs, scale, threads);
}

// The gradients of q, k and v, each with the strides of what it is the gradient of; d_o has those of o.
void lrft_attend_back(const int64_t* given, const int64_t* documents, const void* q, const void* k, const void* v,
                      const void* o, const float* logs, const void* d_o, void* dq, void* dk, void* dv, float* sums,
                      int64_t buffers, int64_t half, float scale, int threads) {
    const Given& of = *reinterpret_cast<const Given*>(given);
    const Document* all = reinterpret_cast<const Document*>(documents);
    if (half)
        pull(of, all, static_cast<const Half*>(q), static_cast<const Half*>(k), static_cast<const Half*>(v),
             static_cast<const Half*>(o), logs, static_cast<const Half*>(d_o), static_cast<Half*>(dq),
             static_cast<Half*>(dk), static_cast<Half*>(dv), sums, static_cast<int>(buffers), scale, threads);
    else
        pull(of, all, static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v),
             static_cast<const float*>(o), logs, static_cast<const float*>(d_o), static_cast<float*>(dq),
             static_cast<float*>(dk), static_cast<float*>(dv), sums, static_cast<int>(buffers), scale,
             threads);
}

}  // extern "C"
