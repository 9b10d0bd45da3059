// One network passing through a program, pack after pack.

#pragma once

#include "program.h"

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
    float *grad_params = nullptr, *aux = nullptr;
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
    void enter(i64 number) { pack = number, samples = std::min(PACK, batch - number * PACK); }

    // `load()` makes the input of a pack, `leave()` takes its output.
    template <typename Load, typename Leave>
    void run_forward(i64 first, i64 last, bool always_load, const Load& load, const Leave& leave);

    // `take()` makes the gradient of a pack's output, `leave()` takes that of its input.
    template <typename Load, typename Take, typename Leave>
    void run_backward(const Backward& plan, i64 first, i64 last, bool always_load, const Load& load, const Take& take,
                      const Leave& leave);

  private:
    Conv conv(const Instruction& i) const {
        const Register &from = program.registers[i.from], &to = program.registers[i.to];
        return {i.groups, from.channels / i.groups, to.channels / i.groups, from.height, from.width, i.kernel};
    }
    void forward(const Instruction& i);
    void backward(const Instruction& i, const BackwardStep& step);
    void close_batch_norm(const Instruction& i, const std::vector<Moments>& moments);
    void sum_batch_norm(const Instruction& i);
};

inline void Pass::forward(const Instruction& i) {
    const Register& from = program.registers[i.from];
    const i64 channels = from.channels, area = from.area(), size = from.size();
    const Vec* x = value(i.from);
    Vec* y = value(i.to);
    const float *w = params + i.weight, *b = i.bias < 0 ? nullptr : params + i.bias;
    switch (i.op) {
        case CONV: return conv_forward(conv(i), x, w, b, y);
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
        case RELU:
            for (i64 n = 0; n < size; ++n) y[n] = relu(x[n]);
            return;
        case POOL: return pool_forward(x, channels, from.height, from.width, y);
        case MEAN: return mean_forward(x, channels, area, y);
        case SIGMOID: return sigmoid_forward(x, size, y);
        case TIMES:
            for (i64 n = 0; n < size; ++n) y[n] = x[n] * i.factor();
            return;
        default: break;
    }
    const Vec* other = value(i.other);
    if (i.op == SCALE) {
        for (i64 c = 0; c < channels; ++c)
            for (i64 n = c * area; n < (c + 1) * area; ++n) y[n] = x[n] * other[c];
    } else if (i.op == FADE) {
        const float openness = std::tanh(w[0]);
        for (i64 n = 0; n < size; ++n) y[n] = x[n] + openness * (other[n] - x[n]);
    } else {
        for (i64 n = 0; n < size; ++n) y[n] = x[n] + other[n];
    }
}

inline void give(Vec* to, i64 n, bool add, Vec value) { to[n] = add ? to[n] + value : value; }

inline void Pass::backward(const Instruction& i, const BackwardStep& step) {
    const Register& from = program.registers[i.from];
    const i64 channels = from.channels, area = from.area(), size = from.size();
    const Vec *x = value(i.from), *y = value(i.to), *other = i.reads_two() ? value(i.other) : nullptr;
    Vec *gy = grad(i.to), *gx = step.want[0] ? grad(i.from) : nullptr;
    Vec* g_other = i.reads_two() && step.want[1] ? grad(i.other) : nullptr;
    const float* w = params + i.weight;
    float *gw = grad_params + i.weight, *gb = i.bias < 0 ? nullptr : grad_params + i.bias;
    const bool add = step.add[0];
    switch (i.op) {
        case CONV:
            if (!given) conv_backward_weight(conv(i), x, gy, gw);
            for (i64 c = 0; gb && !given && c < program.registers[i.to].channels; ++c)
                gb[c] += sum_lanes(total(gy + c * area, area));
            if (gx) conv_backward_input(conv(i), gy, w, add, gx);
            return;
        case GROUP_NORM:
            return group_norm_backward(x, y, channels, area, i.groups, w, i.rectify, stats + i.stats, gy, gw, gb, add,
                                       gx);
        case BATCH_NORM: {
            const float *mean = header() + i.header, count = static_cast<float>(batch * area);
            return batch_norm_backward(x, channels, area, count, samples, mean, mean + channels, w, gy, gw, gb, add, gx);
        }
        case RELU:
            for (i64 n = 0; n < size; ++n) give(gx, n, add, y[n] <= 0.0f ? zero() : gy[n]);
            return;
        case POOL: return pool_backward(x, channels, from.height, from.width, gy, add, gx);
        case MEAN: return mean_backward(gy, channels, area, add, gx);
        case SIGMOID:
            for (i64 n = 0; n < size; ++n) give(gx, n, add, gy[n] * y[n] * (1.0f - y[n]));
            return;
        case TIMES:
            for (i64 n = 0; n < size; ++n) give(gx, n, add, gy[n] * i.factor());
            return;
        case ADD:
            for (i64 n = 0; gx && n < size; ++n) give(gx, n, add, gy[n]);
            for (i64 n = 0; g_other && n < size; ++n) give(g_other, n, step.add[1], gy[n]);
            return;
        case SCALE:
            for (i64 c = 0; c < channels; ++c) {
                Vec sum = {};
                for (i64 n = c * area; n < (c + 1) * area; ++n) sum += gy[n] * x[n];
                for (i64 n = c * area; gx && n < (c + 1) * area; ++n) give(gx, n, add, gy[n] * other[c]);
                if (g_other) give(g_other, c, step.add[1], sum);
            }
            return;
        default: {
            const float openness = std::tanh(w[0]);
            Vec sum = {};
            for (i64 n = 0; n < size; ++n) sum += gy[n] * (other[n] - x[n]);
            gw[0] += sum_lanes(sum) * (1.0f - openness * openness);
            for (i64 n = 0; gx && n < size; ++n) give(gx, n, add, gy[n] * (1.0f - openness));
            for (i64 n = 0; g_other && n < size; ++n) give(g_other, n, step.add[1], gy[n] * openness);
        }
    }
}

// What a batch norm must know of all samples.
inline void Pass::close_batch_norm(const Instruction& i, const std::vector<Moments>& moments) {
    const i64 channels = moments.size();
    float *mean = header() + i.header, *inverse = mean + channels, *given = aux + i.aux;
    for (i64 c = 0; c < channels; ++c) {
        const Moments& m = moments[c];
        mean[c] = given[c] = static_cast<float>(m.mean);
        inverse[c] = 1.0f / std::sqrt(static_cast<float>(m.squares / m.count) + EPSILON);
        given[channels + c] = static_cast<float>(m.squares / std::max(m.count - 1, 1.0));
    }
}

// First half of a batch norm's backward.
inline void Pass::sum_batch_norm(const Instruction& i) {
    const Register& from = program.registers[i.from];
    const float* mean = header() + i.header;
    batch_norm_sums(value(i.from), value(i.to), from.channels, from.area(), mean, mean + from.channels, i.rectify,
                    grad(i.to), grad_params + i.weight, grad_params + i.bias);
}

template <typename Load, typename Leave>
void Pass::run_forward(i64 first, i64 last, bool always_load, const Load& load, const Leave& leave) {
    for (i64 segment = 0; segment < program.segments; ++segment) {
        const Instruction* norm = nullptr;
        for (const Instruction& i : program.instructions)
            if (i.op == BATCH_NORM && i.segment == segment + 1) norm = &i;
        std::vector<Moments> moments(norm ? program.registers[norm->from].channels : 0);
        for (i64 number = first; number < last; ++number) {
            enter(number);
            if (program.loads_input[segment] || always_load) load();
            for (const Instruction& i : program.instructions)
                if (i.segment == segment) forward(i);
            if (norm)
                batch_norm_observe(value(norm->from), moments.size(), program.registers[norm->from].area(), samples,
                                   moments.data());
            if (segment == program.segments - 1) leave();
        }
        if (norm) close_batch_norm(*norm, moments);
    }
}

template <typename Load, typename Take, typename Leave>
void Pass::run_backward(const Backward& plan, i64 first, i64 last, bool always_load, const Load& load,
                        const Take& take, const Leave& leave) {
    for (i64 segment = program.segments - 1; segment >= 0; --segment)
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
}

// lerp(x, out, w), as torch computes it.
inline Vec lerp(Vec x, Vec out, Vec w) {
    const Vec way = out - x;
    return w < 0.5f ? x + w * way : out - way * (1.0f - w);
}

}  // namespace esper
