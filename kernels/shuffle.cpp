// What comes first in random orders, with the bits of esper/utils/rng.py: the order of `n` random numbers of 63 bits, made
// by Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror & Shaw 2011).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "simd.h"

namespace esper {
namespace {

using u32 = std::uint32_t;
using u64 = std::uint64_t;

struct Drawn {
    u64 number;
    i64 place;

    bool operator<(const Drawn& other) const {
        return number != other.number ? number < other.number : place < other.place;
    }
};

inline u32 turned(u32 word, int by) { return word << by | word >> (32 - by); }

// The numbers at counters 0 .. n - 1, n below 2^32.
void draw(u32 k0, u32 k1, i64 n, u64* numbers) {
    constexpr int TURNS[8] = {13, 15, 26, 6, 17, 29, 16, 24};
    const u32 keys[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        u32 x0 = k0, x1 = static_cast<u32>(i) + k1;
#pragma GCC unroll 20
        for (int round = 0; round < 20; ++round) {
            x0 += x1;
            x1 = turned(x1, TURNS[round % 8]) ^ x0;
            if (round % 4 < 3) continue;
            const int group = round / 4 + 1;
            x0 += keys[group % 3], x1 += keys[(group + 1) % 3] + static_cast<u32>(group);
        }
        numbers[i] = static_cast<u64>(x0) << 31 | x1 >> 1;
    }
}

// Places of the `count` smallest numbers, in their order. Few of many lie below a bound that all but certainly holds
// as many; if it does not, all are looked at.
void first_of(const std::vector<u64>& numbers, i64 count, std::vector<Drawn>& held, i64* to) {
    const i64 n = static_cast<i64>(numbers.size());
    const double wanted = count + 8 * std::sqrt(static_cast<double>(count)) + 32;
    const u64 all = u64{1} << 63, bound = wanted < n ? static_cast<u64>(wanted / n * 0x1p63) : all;
    for (u64 below : {bound, all}) {
        held.clear();
        for (i64 i = 0; i < n; ++i)
            if (numbers[i] < below) held.push_back({numbers[i], i});
        if (static_cast<i64>(held.size()) >= count) break;
    }
    std::partial_sort(held.begin(), held.begin() + count, held.end());
    for (i64 i = 0; i < count; ++i) to[i] = held[i].place;
}

}  // namespace
}  // namespace esper

// The first `count` of 0 .. n - 1 in a random order for each key, [rows, 2] -> [rows, count].
extern "C" void esper_shuffle(const esper::i64* keys, esper::i64 rows, esper::i64 n, esper::i64 count,
                              esper::i64 threads, esper::i64* order) {
#pragma omp parallel num_threads(threads) if (threads > 1 && rows > 1)
    {
        std::vector<esper::u64> numbers(n);
        std::vector<esper::Drawn> held;
#pragma omp for
        for (esper::i64 row = 0; row < rows; ++row) {
            esper::draw(static_cast<esper::u32>(keys[2 * row]), static_cast<esper::u32>(keys[2 * row + 1]), n,
                        numbers.data());
            esper::first_of(numbers, count, held, order + row * count);
        }
    }
}
