// Threads that take one network's minibatch together, each its own samples.
//
// Sums over samples are added up share by share, each of sixteen samples, in their order: whoever computes a share, and
// however many there are, results have the same bits.

#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>

#include "simd.h"

namespace esper {

constexpr i64 SHARE = 16 / PACK;  // packs
inline i64 shares_of(i64 packs) { return (packs + SHARE - 1) / SHARE; }

class Team {
    static constexpr i64 PATIENCE = 1 << 14;  // looks before a thread lets others run
    const i64 members;
    std::atomic<i64> arrived{0}, meetings{0};

  public:
    Vec* memory = nullptr;  // that all of them use

    explicit Team(i64 members) : members(members) {}

    // Everybody waits for all; the last to come does `act` before they go on.
    template <typename Act>
    void meet(const Act& act) {
        if (members == 1) return act();
        const i64 meeting = meetings.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
            act();
            arrived.store(0, std::memory_order_relaxed);
            meetings.store(meeting + 1, std::memory_order_release);
            return;
        }
        for (i64 looks = 0; meetings.load(std::memory_order_acquire) == meeting; ++looks)
            if (looks > PATIENCE) sched_yield();
    }

    // The first pack that a member takes; that of the one behind the last is the end.
    i64 first_pack(i64 member, i64 packs) const {
        return std::min(packs, shares_of(packs) * member / members * SHARE);
    }
};

// What batch norm knows of one channel: of the samples seen so far, then of all.
struct Moments {
    double count = 0, mean = 0, squares = 0;  // squares: summed squared differences from the mean

    void merge(double n, double m, double s) {  // Chan, Golub & LeVeque 1979
        const double sum = count + n, delta = m - mean;
        squares += s + delta * delta * count * n / sum;
        mean += delta * n / sum;
        count = sum;
    }
};

// Sums over samples that a team shares, by share.
struct Sums {
    Team* team;
    float* parts;  // gradients of numbers, of all shares but the first
    i64 row;
    Moments* moments;
    i64 channels;
};

}  // namespace esper
