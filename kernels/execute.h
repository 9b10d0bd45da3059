// One network passing through a program, pack after pack.

#pragma once

#include <algorithm>

#include "program.h"
#include "team.h"

namespace esper {

// Where a value of every pack is; step 0: one pack at a time.
struct Place {
    Vec* at;
    i64 step;
};

// Something to be done for a pack; whatever is handed over for it lives as long as the call.
class Hook {
    const void* self;
    void (*act)(const void*);

  public:
    template <typename Act>
    Hook(const Act& a) : self(&a), act([](const void* it) { (*static_cast<const Act*>(it))(); }) {}
    void operator()() const { act(self); }
};

struct Pass {
    const Program& program;
    const i64 batch;
    const float *params, *buffers;
    float *totals = nullptr, *aux = nullptr;  // totals: gradients of numbers, at first of the first share
    float* grad_params = nullptr;             // of the share that is taken
    const Sums* sums = nullptr;
    Place input, output, grad_input, grad_output;
    Vec *values, *stats, *grads, *crossing, *spare;
    Vec* kept;        // what backward reads again
    bool keeps;       // of every pack; else of one at a time
    bool given = false;  // numbers are held constant: only features get gradients that are read
    i64 pack = 0, samples = 0;

    // Vectors that a pass works in.
    static i64 room(const Program& p, i64 packs) {
        const i64 most = std::max(p.registers[0].size(), p.registers[p.output].size());
        return p.values + p.stats + p.grads + packs * p.crossing + most;
    }

    // `kept_at`: memory for `kept_by_network`, or null where there is no backward; then `work` has `kept_by_network(1)`
    // vectors more.
    Pass(const Program& p, i64 batch, const float* params, const float* buffers, Vec* work, Vec* kept_at)
        : program(p), batch(batch), params(params), buffers(buffers), keeps(kept_at) {
        const i64 packs = kept_at ? packs_of(batch) : 1;
        values = work, stats = values + p.values, grads = stats + p.stats, crossing = grads + p.grads;
        spare = crossing + packs * p.crossing;
        kept = kept_at ? kept_at : work + room(p, 1);
        input = {values + p.registers[0].value, 0}, output = {nullptr, 0};
        grad_input = grad_output = {nullptr, 0};
    }

    float* header() const { return reinterpret_cast<float*>(kept); }
    Vec* value(i64 r) const {
        if (r == 0) return input.at + pack * input.step;
        if (r == program.output && output.at) return output.at + pack * output.step;
        const Register& reg = program.registers[r];
        return reg.kept ? kept + program.header + (keeps ? pack * program.kept : 0) + reg.value : values + reg.value;
    }
    Vec* grad(i64 r) const {
        if (r == 0 && grad_input.at) return grad_input.at + pack * grad_input.step;
        if (r == program.output && grad_output.at) return grad_output.at + pack * grad_output.step;
        const Register& reg = program.registers[r];
        return reg.crosses ? crossing + pack * program.crossing + reg.grad : grads + reg.grad;
    }
    void enter(i64 number) {
        pack = number, samples = std::min(PACK, batch - number * PACK);
        grad_params = sums && number >= SHARE ? sums->parts + (number / SHARE - 1) * sums->row : totals;
    }
    // Add up `count` gradients of all shares from number `first` on; the shares' own are 0 then.
    void add_shares(i64 first, i64 count) const {
        for (i64 share = 1; share < shares_of(packs_of(batch)); ++share) {
            float *part = sums->parts + (share - 1) * sums->row + first, *total = totals + first;
            for (i64 n = 0; n < count; ++n) total[n] += part[n], part[n] = 0.0f;
        }
    }
    template <typename Act>
    void meet(const Act& act) const {
        sums ? sums->team->meet(act) : act();
    }

    // `load()` makes the input of a pack, `leave()` takes its output.
    void run_forward(i64 first, i64 last, bool always_load, const Hook& load, const Hook& leave);

    // `take()` makes the gradient of a pack's output, `leave()` takes that of its input.
    void run_backward(const Backward& plan, i64 first, i64 last, bool always_load, const Hook& load, const Hook& take,
                      const Hook& leave);

  private:
    void forward(const Instruction& i);
    void backward(const Instruction& i, const BackwardStep& step);
    void close_batch_norm(const Instruction& i);
    const Instruction* norm_behind(i64 segment) const {
        for (const Instruction& i : program.instructions)
            if (i.op == BATCH_NORM && i.segment == segment + 1) return &i;
        return nullptr;
    }
    void sum_batch_norm(const Instruction& i);
};

}  // namespace esper
