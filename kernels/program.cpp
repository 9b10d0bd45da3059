// Runs programs (program.h) for many networks at once on a CPU.
//
// Work is cut into tasks of (network, pack of samples), or of a whole network where a batch norm joins its samples.
// Each task passes through the whole program while its values are in the cache. What a network gets depends neither on
// how many others there are nor on the number of threads: sums over packs are taken in the order of the packs.

#include "pass.h"

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
    i64 aux_network;
    const float* grad;  // backward
    i64 grad_network, grad_sample;
    float *grad_x, *grad_params, *grad_weight, *partial;
};

// What happens around one network's program.
struct Task {
    const Call& call;
    Pass& pass;
    const i64 network, lane = call.lanes ? call.lanes[network] : network;
    const bool trains = call.training && call.training[network], isolated = call.isolated && call.isolated[network];
    const i64 in = pass.program.registers[0].size(), out = pass.program.registers[pass.program.output].size();

    const float* x() const { return call.x + lane * call.x_network + pass.pack * PACK * call.x_sample; }
    float* place(float* rows, i64 size) const { return rows + (lane * call.batch + pass.pack * PACK) * size; }
    void load() const { load_pack(x(), call.x_sample, pass.samples, in, pass.value(0)); }
    const bool blends = call.weight || call.training;
    Vec weights() const {
        if (!call.weight) return zero() + 1.0f;
        Vec w = {};
        const float* from = call.weight + network * call.batch + pass.pack * PACK;
        for (i64 s = 0; s < pass.samples; ++s) w[s] = from[s];
        return w;
    }

    void forward(i64 first, i64 last) const {
        pass.run_forward(first, last, blends, [&] { load(); }, [&] { write_output(); });
    }

    void write_output() const {
        if (trains) {
            for (i64 s = 0; s < pass.samples; ++s)
                std::memcpy(place(call.y, out) + s * out, x() + s * call.x_sample, out * sizeof(float));
            return;
        }
        const Vec* y = pass.value(pass.program.output);
        if (blends) {
            const Vec w = weights(), *h = pass.value(0);
            for (i64 n = 0; n < out; ++n) pass.spare[n] = lerp(h[n], y[n], w);
            y = pass.spare;
        }
        store_pack(y, out, pass.samples, out, place(call.y, out));
    }

    void backward(i64 first, i64 last) const {
        const bool wanted = call.grad_x && !isolated, weighs = call.grad_weight;
        pass.run_backward(
            pass.program.backward[wanted + 2 * weighs], first, last, weighs, [&] { load(); },
            [&] { read_gradient(weighs); },
            [&] {
                if (call.grad_x) write_input_gradient(wanted);
            });
    }

    void load_gradient() const {
        const float* from = call.grad + lane * call.grad_network + pass.pack * PACK * call.grad_sample;
        load_pack(from, call.grad_sample, pass.samples, out, pass.spare);
    }

    void read_gradient(bool weighs) const {
        load_gradient();
        Vec *g = pass.grad(pass.program.output), sum = {};
        const Vec w = trains ? zero() + 1.0f : weights();
        for (i64 n = 0; n < out; ++n) g[n] = pass.spare[n] * w;
        if (!weighs) return;
        const Vec *h = pass.value(0), *y = pass.value(pass.program.output);
        for (i64 n = 0; n < out && !trains; ++n) sum += pass.spare[n] * (y[n] - h[n]);
        for (i64 s = 0; s < pass.samples; ++s) call.grad_weight[network * call.batch + pass.pack * PACK + s] = sum[s];
    }

    void write_input_gradient(bool wanted) const {
        const Vec* g = wanted ? pass.grad(0) : nullptr;
        if (blends) {
            if (pass.program.segments > 1) load_gradient();  // else `spare` still holds it
            const Vec rest = trains ? zero() + 1.0f : 1.0f - weights();
            for (i64 n = 0; n < in; ++n) pass.spare[n] = g ? pass.spare[n] * rest + g[n] : pass.spare[n] * rest;
            g = pass.spare;
        } else if (!g) {
            g = std::fill_n(pass.spare, in, zero()) - in;
        }
        store_pack(g, in, pass.samples, in, place(call.grad_x, in));
    }
};

// Calls `run(task, first pack, last pack)` for every task.
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
        const Program& program = *call.programs[kinds[network]];
        Vec* work = scratch.room(Pass::room(program, packs) + program.kept_by_network(1));
        Pass pass(program, call.batch, call.params + network * call.params_network,
                  call.buffers + network * call.buffers_network, work, call.kept ? call.kept + kept[network] : nullptr);
        pass.aux = call.aux + network * call.aux_network;
        if (call.grad_params) {
            pass.grad_params = (cuts > 1 ? call.partial : call.grad_params) + task * call.params_network;
            std::memset(pass.grad_params, 0, call.params_network * sizeof(float));
        }
        run(Task{call, pass, network}, joined ? 0 : cut, joined ? packs : cut + 1);
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

// Samples that are computed side by side.
esper::i64 esper_pack() { return esper::PACK; }

// A program from its code; see esper/kernels/program.py. It lives until `esper_release`.
void* esper_program(const esper::i64* code) { return new esper::Program(code); }
void esper_release(void* program) { delete static_cast<esper::Program*>(program); }

// Vectors that a network keeps for backward, and numbers that it gives beside its output.
esper::i64 esper_kept(const void* program, esper::i64 batch) {
    return static_cast<const esper::Program*>(program)->kept_by_network(esper::packs_of(batch));
}
esper::i64 esper_aux(const void* program) { return static_cast<const esper::Program*>(program)->aux; }

void esper_forward(const void* arguments) {
    const auto& call = *static_cast<const esper::Call*>(arguments);
    esper::for_all_tasks(call, [](const esper::Task& task, auto first, auto last) { task.forward(first, last); });
}

void esper_backward(const void* arguments) {
    const auto& call = *static_cast<const esper::Call*>(arguments);
    esper::for_all_tasks(call, [](const esper::Task& task, auto first, auto last) { task.backward(first, last); });
}
}
