// One network passing through a program, pack after pack.

#pragma once

#include "neighbours.h"
#include "team.h"

namespace esper {

// Where a value of every pack is; step 0: one pack at a time.
struct Place {
    Vec* at;
    i64 step;
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
    template <typename Load, typename Leave>
    void run_forward(i64 first, i64 last, bool always_load, const Load& load, const Leave& leave);

    // `take()` makes the gradient of a pack's output, `leave()` takes that of its input.
    template <typename Load, typename Take, typename Leave>
    void run_backward(const Backward& plan, i64 first, i64 last, bool always_load, const Load& load, const Take& take,
                      const Leave& leave);

  private:
    Conv conv(const Instruction& i) const {
        const Register& to = program.registers[i.to];
        const i64 in = program.registers[i.from].size() / to.area();
        return {i.groups, in / i.groups, to.channels / i.groups, to.height, to.width, i.kernel};
    }
    Matrices matrices(const Instruction& i) const {
        const i64 from = program.registers[i.from].size(), other = program.registers[i.other].size();
        return {i.groups, {from / (i.groups * i.kernel), i.kernel, other / (i.groups * i.kernel)}};
    }
    Linear linear(const Instruction& i) const {
        const i64 rows = program.registers[i.from].size() / i.kernel;
        return {rows, i.kernel, program.registers[i.to].size() / rows};
    }
    Pairs pairs(const Instruction& i) const {
        const i64 count = i.reads_two() ? program.registers[i.other].size() : i.kernel;
        return {i.groups, count, program.registers[i.to].size() / (i.groups * count)};
    }
    const i64* table(const Instruction& i) const { return program.tables.data() + i.constant; }
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

inline void Pass::forward(const Instruction& i) {
    const Register &from = program.registers[i.from], &to = program.registers[i.to];
    const i64 channels = to.channels, area = to.area(), size = to.size();
    const Vec *x = value(i.from), *other = i.reads_two() ? value(i.other) : nullptr;
    Vec* y = value(i.to);
    const float *w = params + i.weight, *b = i.bias < 0 ? nullptr : params + i.bias;
    switch (i.op) {
        case CONV: return conv_forward(conv(i), x, w, b, y);
        case LINEAR: return linear_forward(linear(i), x, w, b, y);
        case EMBED: return embed_forward(x, from.size(), w, i.kernel, y);
        case GROUP_NORM:
            return group_norm_forward(x, channels, area, i.groups, w, b, i.rectify, stats + i.stats, y);
        case BATCH_NORM: {
            const float* mean = header() + i.header;
            return affine_forward(x, channels, area, mean, mean + channels, w, b, i.rectify, y);
        }
        case AFFINE: {
            const float *mean = buffers + i.constant, *variance = mean + channels;
            for (i64 c = 0; c < channels; ++c) {
                const float inverse = 1.0f / std::sqrt(variance[c] + EPSILON);
                affine_forward(x + c * area, 1, area, mean + c, &inverse, w + c, b + c, i.rectify, y + c * area);
            }
            return;
        }
        case POOL: return pool_forward(x, channels, from.height, from.width, y);
        case MEAN: return mean_forward(x, size, from.size() / size, y);
        case ADD: return pair_forward<false>(pairs(i), x, other, y);
        case SCALE: return pair_forward<true>(pairs(i), x, other, y);
        case SHIFT: return pair_forward<false>(pairs(i), x, w, y);
        case GAIN: return pair_forward<true>(pairs(i), x, w, y);
        case FADE: {
            const float openness = std::tanh(w[0]);
            for (i64 n = 0; n < size; ++n) y[n] = x[n] + openness * (other[n] - x[n]);
            return;
        }
        case LOAD:
            for (i64 n = 0; n < size; ++n) y[n] = zero() + w[n];
            return;
        case CONST: return const_forward(table(i), size, y);
        case TAKE: return take_forward(x, table(i), size, y);
        case MATMUL: return matmul_forward(matrices(i), x, other, y);
        case SOFTMAX: return softmax_forward(x, i.groups, size / i.groups, y);
        case LARGEST: return largest_forward(x, size, from.size() / size, y);
        case NORMALISE: return normalise_forward(x, i.groups, size / i.groups, i.number(), stats + i.stats, y);
        default: return map_forward(i, x, size, y);
    }
}

inline void Pass::backward(const Instruction& i, const BackwardStep& step) {
    const Register &from = program.registers[i.from], &to = program.registers[i.to];
    const i64 channels = to.channels, area = to.area(), size = to.size();
    const Vec *x = value(i.from), *y = value(i.to), *other = i.reads_two() ? value(i.other) : nullptr;
    Vec *gy = grad(i.to), *gx = step.want[0] ? grad(i.from) : nullptr;
    Vec* g_other = i.reads_two() && step.want[1] ? grad(i.other) : nullptr;
    const float* w = params + i.weight;
    float *gw = grad_params + i.weight, *gb = i.bias < 0 ? nullptr : grad_params + i.bias;
    const bool add = step.add[0];
    const Both both{x, other, gy, gx, g_other, {step.add[0], step.add[1]}};
    switch (i.op) {
        case CONV:
            if (!given) conv_backward_weight(conv(i), x, gy, gw);
            for (i64 c = 0; gb && !given && c < channels; ++c) gb[c] += sum_lanes(total(gy + c * area, area));
            if (gx) conv_backward_input(conv(i), gy, w, add, gx);
            return;
        case LINEAR:
            if (!given) linear_backward_weight(linear(i), x, gy, gw);
            if (gb && !given) pair_backward_numbers<false>({linear(i).rows, linear(i).outputs, 1}, x, gy, gb);
            if (gx) linear_backward_input(linear(i), gy, w, add, gx);
            return;
        case EMBED:
            if (!given) embed_backward(x, from.size(), gy, samples, i.kernel, gw);
            if (gx && !add) std::fill_n(gx, from.size(), zero());  // a token is no quantity
            return;
        case GROUP_NORM:
            return group_norm_backward(x, y, channels, area, i.groups, w, i.rectify, stats + i.stats, gy, gw, gb, add,
                                       gx);
        case BATCH_NORM: {
            const float *mean = header() + i.header, count = static_cast<float>(batch * area);
            const float *sum_gx = totals + i.weight, *sum_g = totals + i.bias;
            return batch_norm_backward(x, channels, area, count, samples, mean, mean + channels, w, gy, sum_gx, sum_g,
                                       add, gx);
        }
        case POOL: return pool_backward(x, channels, from.height, from.width, gy, add, gx);
        case MEAN: return mean_backward(gy, size, from.size() / size, add, gx);
        case ADD: return pair_backward<false>(pairs(i), both);
        case SCALE: return pair_backward<true>(pairs(i), both);
        case SHIFT:
            if (!given) pair_backward_numbers<false>(pairs(i), x, gy, gw);
            if (gx) pair_backward_x<false>(pairs(i), w, gy, add, gx);
            return;
        case GAIN:
            if (!given) pair_backward_numbers<true>(pairs(i), x, gy, gw);
            if (gx) pair_backward_x<true>(pairs(i), w, gy, add, gx);
            return;
        case FADE: return fade_backward(both, size, w, gw);
        case LOAD:
            for (i64 n = 0; n < size && !given; ++n) gw[n] += sum_lanes(gy[n]);
            return;
        case CONST: return;
        case TAKE: return take_backward(gy, table(i), size, from.size(), add, gx);
        case MATMUL:
            if (gx) matmul_backward_x(matrices(i), other, gy, add, gx);
            if (g_other) matmul_backward_other(matrices(i), x, gy, step.add[1], g_other);
            return;
        case SOFTMAX: return softmax_backward(y, gy, i.groups, size / i.groups, add, gx);
        case LARGEST: return largest_backward(x, y, gy, size, from.size() / size, i.constant, add, gx);
        case NORMALISE: return normalise_backward(y, stats + i.stats, gy, i.groups, size / i.groups, add, gx);
        default: return map_backward(i, x, y, gy, size, add, gx);
    }
}

// What a batch norm must know of all samples.
inline void Pass::close_batch_norm(const Instruction& i) {
    const i64 channels = program.registers[i.to].channels;
    float *mean = header() + i.header, *inverse = mean + channels, *given = aux + i.aux;
    for (i64 c = 0; c < channels; ++c) {
        Moments& m = sums->moments[c];
        for (i64 share = 1; share < shares_of(packs_of(batch)); ++share) {
            const Moments& part = sums->moments[share * sums->channels + c];
            m.merge(part.count, part.mean, part.squares);
        }
        mean[c] = given[c] = static_cast<float>(m.mean);
        inverse[c] = 1.0f / std::sqrt(static_cast<float>(m.squares / m.count) + EPSILON);
        given[channels + c] = static_cast<float>(m.squares / std::max(m.count - 1, 1.0));
    }
}

// First half of a batch norm's backward.
inline void Pass::sum_batch_norm(const Instruction& i) {
    const Register& to = program.registers[i.to];
    const float* mean = header() + i.header;
    batch_norm_sums(value(i.from), value(i.to), to.channels, to.area(), mean, mean + to.channels, i.rectify,
                    grad(i.to), grad_params + i.weight, grad_params + i.bias);
}

template <typename Load, typename Leave>
void Pass::run_forward(i64 first, i64 last, bool always_load, const Load& load, const Leave& leave) {
    for (i64 segment = 0; segment < program.segments; ++segment) {
        const Instruction* norm = norm_behind(segment);
        const i64 channels = norm ? program.registers[norm->to].channels : 0;
        for (i64 number = first; number < last; ++number) {
            enter(number);
            if (program.loads_input[segment] || always_load) load();
            for (const Instruction& i : program.instructions)
                if (i.segment == segment) forward(i);
            if (norm) {
                Moments* moments = sums->moments + number / SHARE * sums->channels;
                if (number % SHARE == 0) std::fill_n(moments, channels, Moments{});
                batch_norm_observe(value(norm->from), channels, program.registers[norm->to].area(), samples, moments);
            }
            if (segment == program.segments - 1) leave();
        }
        if (norm) meet([&] { close_batch_norm(*norm); });
    }
}

template <typename Load, typename Take, typename Leave>
void Pass::run_backward(const Backward& plan, i64 first, i64 last, bool always_load, const Load& load,
                        const Take& take, const Leave& leave) {
    for (i64 segment = program.segments - 1; segment >= 0; --segment) {
        for (i64 number = first; number < last; ++number) {
            enter(number);
            if (plan.loads_input[segment] || always_load) load();
            for (i64 n : plan.again)
                if (program.instructions[n].segment == segment) forward(program.instructions[n]);
            if (segment == program.segments - 1) take();
            for (const BackwardStep& step : plan.steps) {
                const Instruction& i = program.instructions[step.instruction];
                if (i.op == BATCH_NORM && i.segment == segment) sum_batch_norm(i);
                else if (i.gives() == segment) backward(i, step);
            }
            if (segment == 0) leave();
        }
        if (const Instruction* norm = segment ? norm_behind(segment - 1) : nullptr) {
            const i64 channels = program.registers[norm->to].channels;
            meet([&] { add_shares(norm->weight, channels), add_shares(norm->bias, channels); });
        }
    }
}

}  // namespace esper
