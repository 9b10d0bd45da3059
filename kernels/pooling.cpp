// 2x2 maximum pooling with stride 2 of contiguous maps, and its gradient.
//
// What torch.maximum does with ties and NaN: a NaN wins; of two equal numbers each gets half of the gradient. The
// larger of a column's two entries is found first, then that of the two columns; an odd last row or column is dropped.
//
// Maps are small and many, so the loops run over blocks of row pairs, of many maps where rows are short: without
// branches, and long enough for vector registers.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

using i64 = std::int64_t;

constexpr i64 BLOCK = 1024;  // numbers in a block, about

inline float larger(float a, float b) { return (a > b) | (a != a) ? a : b; }

// The share of the gradient g of max(own, other) that belongs to own.
inline float share(float own, float other, float g) {
    const float half = own == other ? 0.5f * g : g;
    return own < other ? 0.0f : half;
}

// One map's sizes, and where the pair of rows number p (counted over all maps) begins.
struct Maps {
    i64 height, width, rows = height / 2, columns = width / 2;
    Maps(i64 h, i64 w) : height(h), width(w) {}
    i64 pair(i64 p) const { return (p / rows * height + p % rows * 2) * width; }
};

template <int N>
void column_maxima(const float* __restrict top, const float* __restrict low, float* __restrict to, i64 width) {
    for (i64 c = 0; c < width; c += N)
        for (int v = 0; v < N; ++v) to[c + v] = larger(top[c + v], low[c + v]);
}

template <int N>
void column_shares(const float* __restrict top, const float* __restrict low, const float* __restrict grad,
                   float* __restrict to_top, float* __restrict to_low, i64 width) {
    for (i64 c = 0; c < width; c += N)
        for (int v = 0; v < N; ++v) {
            to_top[c + v] = share(top[c + v], low[c + v], grad[c + v]);
            to_low[c + v] = share(low[c + v], top[c + v], grad[c + v]);
        }
}

// The maxima of all columns of pairs first, ..., last - 1, side by side.
void all_column_maxima(const Maps& m, const float* x, i64 first, i64 last, float* to) {
    for (i64 p = first; p < last; ++p, to += m.width) {
        const float *top = x + m.pair(p), *low = top + m.width;
        if (m.width % 8 == 0) column_maxima<8>(top, low, to, m.width);
        else if (m.width % 4 == 0) column_maxima<4>(top, low, to, m.width);
        else column_maxima<1>(top, low, to, m.width);
    }
}

void row_maxima(const float* __restrict columns, float* __restrict y, i64 count) {
    for (i64 i = 0; i < count; ++i) y[i] = larger(columns[2 * i], columns[2 * i + 1]);
}

void row_shares(const float* __restrict columns, const float* __restrict grad, float* __restrict to, i64 count) {
    for (i64 i = 0; i < count; ++i) {
        const float left = columns[2 * i], right = columns[2 * i + 1], g = grad[i];
        to[2 * i] = share(left, right, g);
        to[2 * i + 1] = share(right, left, g);
    }
}

struct Blocks {
    i64 pairs, size, count;
    Blocks(const Maps& m, i64 maps)
        : pairs(maps * m.rows), size(std::max<i64>(1, BLOCK / m.width)), count((pairs + size - 1) / size) {}
    i64 first(i64 block) const { return block * size; }
    i64 last(i64 block) const { return std::min(pairs, (block + 1) * size); }
    i64 room(const Maps& m) const { return size * m.width; }
};

}  // namespace

extern "C" {

// y[maps][height/2][width/2] from x[maps][height][width].
void esper_pool(const float* x, float* y, i64 maps, i64 height, i64 width, int threads) {
    const Maps m(height, width);
    const Blocks blocks(m, maps);
#pragma omp parallel num_threads(threads) if (threads > 1 && blocks.count > 8)
    {
        float* columns = new float[blocks.room(m)];
#pragma omp for schedule(static)
        for (i64 block = 0; block < blocks.count; ++block) {
            const i64 first = blocks.first(block), last = blocks.last(block);
            all_column_maxima(m, x, first, last, columns);
            if (width % 2 == 0) row_maxima(columns, y + first * m.columns, (last - first) * m.columns);
            else
                for (i64 p = first; p < last; ++p)
                    row_maxima(columns + (p - first) * width, y + p * m.columns, m.columns);
        }
        delete[] columns;
    }
}

// The gradient of x from that of y.
void esper_unpool(const float* x, const float* grad, float* out, i64 maps, i64 height, i64 width, int threads) {
    const Maps m(height, width);
    const Blocks blocks(m, maps);
    if (height % 2)
        for (i64 map = 0; map < maps; ++map)
            std::memset(out + ((map + 1) * height - 1) * width, 0, width * sizeof(float));
#pragma omp parallel num_threads(threads) if (threads > 1 && blocks.count > 8)
    {
        float *columns = new float[blocks.room(m)], *shares = new float[blocks.room(m)]();
#pragma omp for schedule(static)
        for (i64 block = 0; block < blocks.count; ++block) {
            const i64 first = blocks.first(block), last = blocks.last(block);
            all_column_maxima(m, x, first, last, columns);
            if (width % 2 == 0) row_shares(columns, grad + first * m.columns, shares, (last - first) * m.columns);
            else
                for (i64 p = first; p < last; ++p)
                    row_shares(columns + (p - first) * width, grad + p * m.columns, shares + (p - first) * width,
                               m.columns);
            for (i64 p = first; p < last; ++p) {
                const float *top = x + m.pair(p), *low = top + width, *g = shares + (p - first) * width;
                float *to_top = out + m.pair(p), *to_low = to_top + width;
                if (width % 8 == 0) column_shares<8>(top, low, g, to_top, to_low, width);
                else if (width % 4 == 0) column_shares<4>(top, low, g, to_top, to_low, width);
                else column_shares<1>(top, low, g, to_top, to_low, width);
            }
        }
        delete[] columns;
        delete[] shares;
    }
}
}
