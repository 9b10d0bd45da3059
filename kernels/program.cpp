// Runs programs (program.h) for many networks at once on a CPU.
//
// Work is cut into tasks of (network, pack of samples), or of a whole network where a batch norm joins its samples.
// Each task passes through the whole program while its values are in the cache. What a network gets depends neither on
// how many others there are nor on the number of threads: sums over packs are taken in the order of the packs.

#include "program.h"

namespace esper {
namespace {

// One call, as the caller lays it out. Strides count numbers; a null pointer says that something is not there.
struct Call {
    i64 networks, batch, kinds, threads;
    const Program* const* programs;  // [kinds]
    const i64* counts;               // [kinds]; networks of each kind, one kind after the other
    const float* x;
    i64 x_network, x_sample;
    const i64* lanes;  // [networks]; row of x and y of each network; null: its own number
    const float* params;
    i64 params_network;
    const float* buffers;
    i64 buffers_network;
    const float* weight;  // [networks][batch]: y = lerp(x, program(x), weight); null: y = program(x)
    const bool* training;  // [networks]: y = x, and the gradient of the program's output is that of y
    const bool* isolated;  // [networks]: no gradient to x through the program
    Vec* kept;
    float* y;  // forward
    float* aux;
    const float* grad;  // backward
    i64 grad_network, grad_sample;
    float *grad_x, *grad_params, *grad_weight, *partial;
};

// One network passing through its program.
struct Pass {
    const Call& call;
    const Program& program;
    const i64 network, lane, packs;
    const float *params, *buffers;
    float* grad_params;
    Vec *kept, *values, *stats, *grads, *crossing, *spare, *loaded;
    i64 pack = 0, samples = 0;

    Pass(const Call& c, const Program& p, i64 network, i64 kept_at, Scratch& scratch)
        : call(c), program(p), network(network), lane(c.lanes ? c.lanes[network] : network), packs(packs_of(c.batch)),
          params(c.params + network * c.params_network), buffers(c.buffers + network * c.buffers_network),
          grad_params(nullptr) {
        const i64 out = p.registers[p.output].size(), own = c.kept ? 0 : p.kept + p.header;
        Vec* room = scratch.room(p.values + p.stats + p.grads + packs * p.crossing + 2 * out + own);
        values = room, stats = values + p.values, grads = stats + p.stats, crossing = grads + p.grads;
        spare = crossing + packs * p.crossing, loaded = spare + out;
        kept = c.kept ? c.kept + kept_at : loaded + out;
    }

    void enter(i64 number) { pack = number, samples = std::min(PACK, call.batch - number * PACK); }
    float* header() const { return reinterpret_cast<float*>(kept); }
    Vec* value(i64 r) const {
        const Register& reg = program.registers[r];
        return reg.kept ? kept + program.header + (call.kept ? pack : 0) * program.kept + reg.value : values + reg.value;
    }
    Vec* grad(i64 r) const {
        const Register& reg = program.registers[r];
        return reg.crosses ? crossing + pack * program.crossing + reg.grad : grads + reg.grad;
    }
    bool trains() const { return call.training && call.training[network]; }
    bool isolates() const { return call.isolated && call.isolated[network]; }
    Vec weights() const {
        Vec w = {};
        const float* from = call.weight + network * call.batch + pack * PACK;
        for (i64 s = 0; s < samples; ++s) w[s] = from[s];
        return w;
    }
    const float* input() const { return call.x + lane * call.x_network + pack * PACK * call.x_sample; }
    float* place(float* rows, i64 size) const { return rows + (lane * call.batch + pack * PACK) * size; }
    void load_input() { load_pack(input(), call.x_sample, samples, program.registers[0].size(), value(0)); }

    Conv conv(const Instruction& i) const {
        const Register &from = program.registers[i.from], &to = program.registers[i.to];
        return {i.groups, from.channels / i.groups, to.channels / i.groups, from.height, from.width, i.kernel};
    }
    void forward(const Instruction& i);
    void backward(const Instruction& i, const BackwardStep& step);
    void close_batch_norms(i64 segment, std::vector<Moments>& moments);
    void write_output();
    void read_gradient(bool weighs);
    void write_input_gradient(const Backward& plan, bool wanted);

  public:
    void run_forward(i64 first_pack, i64 last_pack);
    void run_backward(i64 first_pack, i64 last_pack);
};

void Pass::forward(const Instruction& i) {
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
            float* inverse = reinterpret_cast<float*>(spare);
            const float* variance = buffers + i.constant + channels;
            for (i64 c = 0; c < channels; ++c) inverse[c] = 1.0f / std::sqrt(variance[c] + EPSILON);
            return affine_forward(x, channels, area, buffers + i.constant, inverse, w, b, i.rectify, y);
        }
        case RELU:
            for (i64 n = 0; n < size; ++n) y[n] = relu(x[n]);
            return;
        case POOL: return pool_forward(x, channels, from.height, from.width, y);
        case MEAN: return mean_forward(x, channels, area, y);
        case SIGMOID: return sigmoid_forward(x, size, y);
        case TIMES:
            for (i64 n = 0; n < size; ++n) y[n] = x[n] * static_cast<float>(i.constant);
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

void Pass::backward(const Instruction& i, const BackwardStep& step) {
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
            conv_backward_weight(conv(i), x, gy, gw);
            for (i64 c = 0; gb && c < program.registers[i.to].channels; ++c)
                gb[c] += sum_lanes(total(gy + c * area, area));
            if (gx) conv_backward_input(conv(i), gy, w, add, gx);
            return;
        case GROUP_NORM:
            return group_norm_backward(x, y, channels, area, i.groups, w, i.rectify, stats + i.stats, gy, gw, gb, add,
                                       gx);
        case BATCH_NORM: {
            const float *mean = header() + i.header, count = static_cast<float>(call.batch * area);
            return batch_norm_backward(x, channels, area, count, mean, mean + channels, w, gy, gw, gb, add, gx);
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
            for (i64 n = 0; n < size; ++n) give(gx, n, add, gy[n] * static_cast<float>(i.constant));
            return;
        case ADD:
            for (i64 n = 0; gx && n < size; ++n) give(gx, n, add, gy[n]);
            for (i64 n = 0; g_other && n < size; ++n) give(g_other, n, step.add[1], gy[n]);
            return;
        case SCALE:
            for (i64 c = 0; c < channels; ++c) {
                Vec sum = {};
                for (i64 n = c * area; n < (c + 1) * area; ++n) sum += gy[n] * x[n];
                if (g_other) give(g_other, c, step.add[1], sum);
                for (i64 n = c * area; gx && n < (c + 1) * area; ++n) give(gx, n, add, gy[n] * other[c]);
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

// What the batch norms that begin a segment must know of all samples.
void Pass::close_batch_norms(i64 segment, std::vector<Moments>& moments) {
    for (const Instruction& i : program.instructions) {
        if (i.op != BATCH_NORM || i.segment != segment) continue;
        const i64 channels = program.registers[i.from].channels;
        float *mean = header() + i.header, *inverse = mean + channels;
        float* aux = call.aux + network * program.aux + i.aux;
        for (i64 c = 0; c < channels; ++c) {
            const Moments& m = moments[c];
            mean[c] = static_cast<float>(m.mean);
            inverse[c] = 1.0f / std::sqrt(static_cast<float>(m.squares / m.count) + EPSILON);
            aux[c] = mean[c];
            aux[channels + c] = static_cast<float>(m.squares / std::max(m.count - 1, 1.0));
        }
    }
}

void Pass::write_output() {
    const i64 size = program.registers[program.output].size();
    const Vec *out = value(program.output), *x = value(0);
    if (trains()) {
        for (i64 s = 0; s < samples; ++s)
            std::memcpy(place(call.y, size) + s * size, input() + s * call.x_sample, size * sizeof(float));
        return;
    }
    if (call.weight) {
        const Vec w = weights();
        for (i64 n = 0; n < size; ++n) {
            const Vec way = out[n] - x[n];
            spare[n] = w < 0.5f ? x[n] + w * way : out[n] - way * (1.0f - w);
        }
        out = spare;
    }
    store_pack(out, size, samples, size, place(call.y, size));
}

void Pass::run_forward(i64 first_pack, i64 last_pack) {
    for (i64 segment = 0; segment < program.segments; ++segment) {
        std::vector<Moments> moments;
        const Instruction* norm = nullptr;
        for (const Instruction& i : program.instructions)
            if (i.op == BATCH_NORM && i.segment == segment + 1) norm = &i;
        if (norm) moments.resize(program.registers[norm->from].channels);
        for (i64 number = first_pack; number < last_pack; ++number) {
            enter(number);
            if (program.loads_input[segment] || call.weight) load_input();
            for (const Instruction& i : program.instructions)
                if (i.segment == segment) forward(i);
            if (norm) {
                const Register& from = program.registers[norm->from];
                batch_norm_observe(value(norm->from), from.channels, from.area(), samples, moments.data());
            }
            if (segment == program.segments - 1) write_output();
        }
        if (norm) close_batch_norms(segment + 1, moments);
    }
}

void Pass::read_gradient(bool weighs) {
    const i64 size = program.registers[program.output].size();
    const float* from = call.grad + lane * call.grad_network + pack * PACK * call.grad_sample;
    load_pack(from, call.grad_sample, samples, size, loaded);
    Vec* g = grad(program.output);
    const Vec w = call.weight && !trains() ? weights() : zero() + 1.0f;
    for (i64 n = 0; n < size; ++n) g[n] = loaded[n] * w;
    if (weighs) {
        const Vec *x = value(0), *out = value(program.output);
        Vec sum = {};
        if (!trains())
            for (i64 n = 0; n < size; ++n) sum += loaded[n] * (out[n] - x[n]);
        for (i64 s = 0; s < samples; ++s) call.grad_weight[network * call.batch + pack * PACK + s] = sum[s];
    }
}

void Pass::write_input_gradient(const Backward& plan, bool wanted) {
    const i64 size = program.registers[0].size();
    const Vec* g = wanted ? grad(0) : nullptr;
    if (call.weight) {  // one pack at a time: `loaded` still holds the gradient of y
        const Vec rest = trains() ? zero() + 1.0f : 1.0f - weights();
        for (i64 n = 0; n < size; ++n) spare[n] = g ? loaded[n] * rest + g[n] : loaded[n] * rest;
        g = spare;
    }
    store_pack(g, size, samples, size, place(call.grad_x, size));
}

void Pass::run_backward(i64 first_pack, i64 last_pack) {
    const bool wanted = call.grad_x && !isolates(), weighs = call.grad_weight != nullptr;
    const Backward& plan = program.backward[wanted + 2 * weighs];
    for (i64 segment = program.segments - 1; segment >= 0; --segment)
        for (i64 number = first_pack; number < last_pack; ++number) {
            enter(number);
            if (plan.loads_input[segment] || weighs) load_input();
            for (i64 n : plan.again)
                if (program.instructions[n].segment == segment) forward(program.instructions[n]);
            if (segment == program.segments - 1) read_gradient(weighs);
            for (const BackwardStep& step : plan.steps) {
                const Instruction& i = program.instructions[step.instruction];
                const Register& from = program.registers[i.from];
                if (i.op == BATCH_NORM && i.segment == segment) {
                    const float* mean = header() + i.header;
                    batch_norm_sums(value(i.from), value(i.to), from.channels, from.area(), mean,
                                    mean + from.channels, i.rectify, grad(i.to), grad_params + i.weight,
                                    grad_params + i.bias);
                } else if (i.gives() == segment) {
                    backward(i, step);
                }
            }
            if (segment == 0 && call.grad_x) write_input_gradient(plan, wanted);
        }
}

// Calls `run(pass, first pack, last pack, index of the task)` for every task.
template <typename Run>
void for_all_tasks(const Call& call, const Run& run) {
    const i64 packs = packs_of(call.batch);
    bool joined = false;
    std::vector<i64> kinds, kept;
    i64 at = 0;
    for (i64 k = 0; k < call.kinds; ++k) {
        joined = joined || call.programs[k]->segments > 1;
        for (i64 n = 0; n < call.counts[k]; ++n) {
            kinds.push_back(k), kept.push_back(at);
            at += call.programs[k]->kept_by_network(packs);
        }
    }
    const i64 cuts = joined ? 1 : packs, tasks = call.networks * cuts;
#pragma omp parallel for num_threads(call.threads) schedule(dynamic) if (call.threads > 1 && tasks > 1)
    for (i64 task = 0; task < tasks; ++task) {
        thread_local Scratch scratch;
        const i64 network = task / cuts, cut = task % cuts;
        Pass pass(call, *call.programs[kinds[network]], network, kept[network], scratch);
        run(pass, joined ? 0 : cut, joined ? packs : cut + 1, task);
    }
    if (!call.grad_params || cuts == 1) return;
    for (i64 n = 0; n < call.networks; ++n) {
        float* sum = call.grad_params + n * call.params_network;
        const float* part = call.partial + n * cuts * call.params_network;
        std::memcpy(sum, part, call.params_network * sizeof(float));
        for (i64 cut = 1; cut < cuts; ++cut) {
            part += call.params_network;
            for (i64 w = 0; w < call.params_network; ++w) sum[w] += part[w];
        }
    }
}

}  // namespace
}  // namespace esper

extern "C" {

// A program from its code; see esper/kernels/program.py. It lives until `esper_release`.
void* esper_program(const esper::i64* code) { return new esper::Program(code); }
void esper_release(void* program) { delete static_cast<esper::Program*>(program); }

// Vectors of 16 numbers that a network keeps for backward, and numbers that it gives beside its output.
esper::i64 esper_kept(const void* program, esper::i64 batch) {
    return static_cast<const esper::Program*>(program)->kept_by_network(esper::packs_of(batch));
}
esper::i64 esper_aux(const void* program) { return static_cast<const esper::Program*>(program)->aux; }

void esper_forward(const void* arguments) {
    const auto& call = *static_cast<const esper::Call*>(arguments);
    esper::for_all_tasks(call, [&](esper::Pass& pass, auto first, auto last, auto) { pass.run_forward(first, last); });
}

void esper_backward(const void* arguments) {
    const auto& call = *static_cast<const esper::Call*>(arguments);
    float* parts = esper::packs_of(call.batch) > 1 ? call.partial : call.grad_params;
    esper::for_all_tasks(call, [&](esper::Pass& pass, auto first, auto last, auto task) {
        const bool whole = pass.program.segments > 1;
        pass.grad_params = (whole ? call.grad_params : parts) + task * call.params_network;
        std::memset(pass.grad_params, 0, call.params_network * sizeof(float));
        pass.run_backward(first, last);
    });
}
}
