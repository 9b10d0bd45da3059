// Convolutions 3 wide by minimal filtering, F(4, 3) along rows (Winograd 1980; Lavin & Gray 2016): four neighbours of a
// row and three taps meet in six products instead of twelve. As polynomials, rows and taps are evaluated at the points
// 0, a, -a, b, -b and infinity, multiplied there, and interpolated.
//
// With a^2 = 1/2 and b^2 = 2 rounding stays smallest for its cost (Alam et al. 2022): twice that of the direct form. The
// six transforms differ by signs and factors only; taps from above and below are added up between them.

#include "winograd.h"

#include <algorithm>

#include "scratch.h"

namespace esper {
namespace {

constexpr float A = 0.70710678f, B = 1.41421356f;  // the points
constexpr int POINTS = 6, TILE = 4, BLOCK = 4;     // neighbours in a tile, output channels in a block

// Whether products at all points stay in registers.
constexpr bool AT_ONCE = fits(POINTS * BLOCK, 1);

// Rows of tiles, with a row of zeros above and below.
struct Tiles {
    i64 height, width, across, plane;  // plane: the vectors of a point and channel
    explicit Tiles(const Conv& c)
        : height(c.height), width(c.width), across((c.width + TILE - 1) / TILE), plane(((c.height + 2) * across) | 1) {}
    i64 count() const { return height * across; }
    i64 size(i64 channels) const { return POINTS * channels * plane; }
};

// A number of a row, or 0 beside it. (By value: of two places in memory compilers choose slowly.)
inline Vec beside(const Vec* row, i64 column, i64 width) {
    if (column < 0 || column >= width) return zero();
    return held(row[column]);
}

// A tile at the points: `to` [points, step].
inline void evaluate_tile(const Vec* row, i64 first, i64 width, i64 step, Vec* to) {
    const auto at = [&](i64 n) { return beside(row, first + n - 1, width); };
    const Vec x0 = at(0), x1 = at(1), x2 = at(2), x3 = at(3), x4 = at(4), x5 = at(5);
    const Vec even_a = x4 - 2.0f * x2, odd_a = x3 - 2.0f * x1;
    const Vec even_b = x4 - 0.5f * x2, odd_b = x3 - 0.5f * x1;
    to[0] = x0 - 2.5f * x2 + x4;
    to[step] = even_a + A * odd_a, to[2 * step] = even_a - A * odd_a;
    to[3 * step] = even_b + B * odd_b, to[4 * step] = even_b - B * odd_b;
    to[5 * step] = x1 - 2.5f * x3 + x5;
}

// A map at the points: [points, channels, plane].
inline void evaluate(const Tiles& tiles, const Vec* x, i64 channels, Vec* to) {
    const i64 step = channels * tiles.plane, across = tiles.across, width = tiles.width;
    for (i64 c = 0; c < channels; ++c, to += tiles.plane) {
        for (int point = 0; point < POINTS; ++point) {
            std::fill_n(to + point * step, across, zero());
            std::fill_n(to + point * step + across * (tiles.height + 1), across, zero());
        }
        Vec* place = to + across;
        for (i64 h = 0; h < tiles.height; ++h, x += width)
            for (i64 tile = 0; tile < across; ++tile, ++place) evaluate_tile(x, tile * TILE, width, step, place);
    }
}

// Taps at the points, by blocks of output channels: [blocks, points, rows of taps, in, BLOCK]; or points second to last.
inline void evaluate_taps(const Weights& s, i64 in, i64 out, Quad* to) {
    const i64 step = AT_ONCE ? 1 : 3 * in, next = AT_ONCE ? POINTS : 1;
    for (i64 first = 0; first < out; first += BLOCK, to += AT_ONCE ? 0 : (POINTS - 1) * step) {
        const i64 count = std::min<i64>(BLOCK, out - first);
        for (i64 ky = 0; ky < 3; ++ky)
            for (i64 i = 0; i < in; ++i, to += next) {
                const float* from = s.first + first * s.out + i * s.in + ky * 3 * s.tap;
                const auto tap = [&](i64 k) {
                    const float* at = from + k * s.tap;
                    if (count == BLOCK) return Quad{at[0], at[s.out], at[2 * s.out], at[3 * s.out]};
                    return Quad{at[0], count > 1 ? at[s.out] : 0.0f, count > 2 ? at[2 * s.out] : 0.0f, 0.0f};
                };
                const Quad w0 = tap(0), w1 = tap(1), w2 = tap(2);
                const Quad even_a = (w0 + 0.5f * w2) * (-2.0f / 3), odd_a = (-2.0f / 3 * A) * w1;
                const Quad even_b = (w0 + 2.0f * w2) * (1.0f / 6), odd_b = (1.0f / 6 * B) * w1;
                to[0] = w0;
                to[step] = even_a + odd_a, to[2 * step] = even_a - odd_a;
                to[3 * step] = even_b + odd_b, to[4 * step] = even_b - odd_b;
                to[5 * step] = w2;
            }
    }
}

// Products at the points, of T tiles that follow each other and a block of output channels.
template <int T>
struct Products {
    Vec at[POINTS][BLOCK][T];

    // Rows of taps from `top` to `bottom`; at all points at once, where that stays in registers.
    void multiply(const Vec* x, const float* w, i64 in, const Tiles& tiles, i64 top, i64 bottom) {
        constexpr int ONCE = AT_ONCE ? POINTS : 1;
        const i64 step = in * tiles.plane;
        for (int point = 0; point < POINTS; point += ONCE, x += step * ONCE, w += 3 * in * BLOCK) {
            Vec sum[ONCE][BLOCK][T] = {};
            for (i64 ky = top; ky < bottom; ++ky) {
                const Vec* from = x + ky * tiles.across;
                const float* by = w + ky * in * BLOCK * ONCE;
                for (i64 i = 0; i < in; ++i, from += tiles.plane, by += BLOCK * ONCE)
                    for (int n = 0; n < ONCE; ++n) {
                        Vec v[T];
                        for (int t = 0; t < T; ++t) v[t] = held(from[n * step + t]);
                        for (int o = 0; o < BLOCK; ++o)
                            for (int t = 0; t < T; ++t) sum[n][o][t] += by[n * BLOCK + o] * v[t];
                    }
            }
            for (int n = 0; n < ONCE; ++n)
                for (int o = 0; o < BLOCK; ++o)
                    for (int t = 0; t < T; ++t) at[point + n][o][t] = sum[n][o][t];
        }
    }

    // A tile's four numbers.
    void interpolate(int o, int t, Vec y[TILE]) const {
        const Vec sum_a = at[1][o][t] + at[2][o][t], odd_a = at[1][o][t] - at[2][o][t];
        const Vec sum_b = at[3][o][t] + at[4][o][t], odd_b = at[3][o][t] - at[4][o][t];
        y[0] = at[0][o][t] + sum_a + sum_b;
        y[1] = A * odd_a + B * odd_b;
        y[2] = 0.5f * sum_a + 2.0f * sum_b;
        y[3] = at[5][o][t] + (0.5f * A) * odd_a + (2.0f * B) * odd_b;
    }
};

struct Output {
    i64 out;
    const float* bias;
    bool add;
    Vec* y;

    // A tile's first `count` numbers.
    void put(const Vec found[TILE], i64 channel, i64 count, Vec* to) const {
        const Vec shift = bias ? zero() + bias[channel] : zero();
        for (int n = 0; n < TILE; ++n) {
            if (n < count) to[n] = found[n] + (add ? to[n] : shift);
        }
    }
};

template <int T>
inline void filter_tiles(const Tiles& tiles, const Vec* x, i64 in, const float* taps, i64 first, const Output& to) {
    const i64 top = first + T <= tiles.across, bottom = first >= tiles.count() - tiles.across ? 2 : 3;
    const i64 area = tiles.height * tiles.width;
    i64 at[T], count[T];
    for (int t = 0; t < T; ++t) {
        const i64 row = (first + t) / tiles.across, column = (first + t) % tiles.across * TILE;
        at[t] = row * tiles.width + column, count[t] = std::min<i64>(TILE, tiles.width - column);
    }
    for (i64 block = 0; block < to.out; block += BLOCK, taps += POINTS * 3 * in * BLOCK) {
        Products<T> products;
        products.multiply(x + first, taps, in, tiles, top, bottom);
        for (int o = 0; o < BLOCK; ++o)
            for (int t = 0; t < T; ++t) {
                if (block + o >= to.out) break;
                Vec found[TILE];
                products.interpolate(o, t, found);
                to.put(found, block + o, count[t], to.y + (block + o) * area + at[t]);
            }
    }
}

// Gradients of C channels' tiles at the points, of some rows: [points, tiles, C].
template <int C>
inline void evaluate_gradient(const Tiles& tiles, const Vec* g, i64 first, i64 last, Vec* to) {
    const i64 area = tiles.height * tiles.width, step = (last - first) * tiles.across * C;
    for (i64 h = first; h < last; ++h)
        for (i64 tile = 0; tile < tiles.across; ++tile)
            for (int o = 0; o < C; ++o, ++to) {
                const Vec* row = g + o * area + h * tiles.width + tile * TILE;
                Vec v[TILE];
                for (i64 n = 0; n < TILE; ++n) v[n] = tile * TILE + n < tiles.width ? row[n] : zero();
                const Vec even_a = v[0] + 0.5f * v[2], odd_a = v[1] + 0.5f * v[3];
                const Vec even_b = v[0] + 2.0f * v[2], odd_b = v[1] + 2.0f * v[3];
                to[0] = v[0];
                to[step] = even_a + A * odd_a, to[2 * step] = even_a - A * odd_a;
                to[3 * step] = even_b + B * odd_b, to[4 * step] = even_b - B * odd_b;
                to[5 * step] = v[3];
            }
}

// Sums over tiles of C channels' gradients times an input's numbers in three rows, at one point: [C, 3], and over
// samples.
template <int C>
inline LaneSums<C * 3> contract_tiles(const Vec* x, const Vec* g, i64 count, i64 across) {
    Vec sum[C * 3] = {};
    for (i64 n = 0; n < count; ++n, g += C) {
        Vec v[3];
        for (int ky = 0; ky < 3; ++ky) v[ky] = held(x[n + ky * across]);
        for (int o = 0; o < C; ++o) {
            const Vec each = held(g[o]);
            for (int ky = 0; ky < 3; ++ky) sum[o * 3 + ky] += each * v[ky];
        }
    }
    return LaneSums<C * 3>(sum);
}

// What sums at the points, [points, C, 3], say of one input's taps.
template <int C>
inline void interpolate_taps(const Vec* sums, i64 stride, float* gw) {
    constexpr int SIZE = LaneSums<C * 3>::SIZE;
    Vec taps[3][SIZE];
    for (int n = 0; n < SIZE; ++n, ++sums) {
        const Vec sum_a = sums[SIZE] + sums[2 * SIZE], odd_a = sums[SIZE] - sums[2 * SIZE];
        const Vec sum_b = sums[3 * SIZE] + sums[4 * SIZE], odd_b = sums[3 * SIZE] - sums[4 * SIZE];
        taps[0][n] = sums[0] - (2.0f / 3) * sum_a + (1.0f / 6) * sum_b;
        taps[1][n] = (1.0f / 6 * B) * odd_b - (2.0f / 3 * A) * odd_a;
        taps[2][n] = sums[5 * SIZE] + (1.0f / 3) * (sum_b - sum_a);
    }
    for (int kx = 0; kx < 3; ++kx) {
        const float* from = reinterpret_cast<const float*>(taps[kx]);
        for (int o = 0; o < C; ++o)
            for (int ky = 0; ky < 3; ++ky) gw[o * stride + ky * 3 + kx] += from[o * 3 + ky];
    }
}

// C channels' gradients; `x`: the map at the points.
template <int C>
inline void contract_block(const Conv& c, const Tiles& tiles, const Vec* x, const Vec* g, float* gw) {
    constexpr i64 STRIP = 64;  // tiles that stay in the cache
    thread_local Scratch scratch;
    constexpr int SIZE = LaneSums<C * 3>::SIZE;
    const i64 rows = std::min(tiles.height, std::max<i64>(1, STRIP / tiles.across)), size = rows * tiles.across * C;
    Vec *sums = scratch.room(POINTS * (size + c.in * SIZE)), *strip = sums + POINTS * c.in * SIZE;
    std::fill(sums, strip, zero());
    for (i64 h = 0; h < tiles.height; h += rows) {
        const i64 last = std::min(tiles.height, h + rows), count = (last - h) * tiles.across;
        evaluate_gradient<C>(tiles, g, h, last, strip);
        Vec* to = sums;
        for (i64 i = 0; i < c.in; ++i)
            for (i64 point = 0; point < POINTS; ++point, to += SIZE) {
                const Vec* from = x + (point * c.in + i) * tiles.plane + h * tiles.across;
                const auto found = contract_tiles<C>(from, strip + point * count * C, count, tiles.across);
                for (int n = 0; n < SIZE; ++n) to[n] += found.at[n];
            }
    }
    for (i64 i = 0; i < c.in; ++i) interpolate_taps<C>(sums + i * POINTS * SIZE, c.in * 9, gw + i * 9);
}

thread_local Scratch maps, numbers;

}  // namespace

void filter(const Conv& c, const Vec* x, i64 in, i64 out, const Weights& s, const float* bias, bool add, Vec* y) {
    constexpr int T = AT_ONCE ? 1 : positions(BLOCK);
    const Tiles tiles(c);
    const i64 quads = (out + BLOCK - 1) / BLOCK * POINTS * 3 * in;
    Vec* map = maps.room(tiles.size(in));
    auto* taps = reinterpret_cast<float*>(numbers.room(packs_of(4 * quads)));
    evaluate(tiles, x, in, map);
    evaluate_taps(s, in, out, reinterpret_cast<Quad*>(taps));
    const Output to{out, bias, add, y};
    i64 first = 0;
    for (; first + T <= tiles.count(); first += T) filter_tiles<T>(tiles, map, in, taps, first, to);
    for (; first < tiles.count(); ++first) filter_tiles<1>(tiles, map, in, taps, first, to);
}

void filter_gradient(const Conv& c, const Vec* x, const Vec* g, float* gw) {
    const Tiles tiles(c);
    const i64 area = c.area(), stride = c.in * 9;
    Vec* map = maps.room(tiles.size(c.in));
    evaluate(tiles, x, c.in, map);
    i64 o = 0;
    if constexpr (fits(8 * 3, 3))
        for (; o + 8 <= c.out; o += 8) contract_block<8>(c, tiles, map, g + o * area, gw + o * stride);
    for (; o + 4 <= c.out; o += 4) contract_block<4>(c, tiles, map, g + o * area, gw + o * stride);
    for (; o < c.out; ++o) contract_block<1>(c, tiles, map, g + o * area, gw + o * stride);
}

}  // namespace esper
