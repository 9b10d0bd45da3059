// Inference: a pack of an environment's samples through all its lanes, copies that differ in which seeds take part, and
// what they say of it. A lane exists from the slot on where it leaves its parent. An environment's result does not depend
// on the others.

#include "loss.h"
#include "network.h"
#include "scratch.h"

namespace esper {
namespace {

// One network's features on their way.
struct Lane {
    i64 number;                     // in the call
    Vec *features, *spare, *grown;  // grown: what the bypass of the present slot gave
    std::vector<Vec*> at;           // by point; what bypasses further on read
};

// All lanes of an environment, for one pack.
class Inference {
    const Call& call;
    const i64 network, pack;
    std::vector<Lane> lanes;
    std::vector<bool> read;  // by point; whether a bypass reads it
    Vec *work, *weight, *saved;  // weight: openings of a gate
    float* numbers;  // a row and what follows from it
    i64 live = 1, size, widest = 0;

    void place(Scratch& scratch) {
        i64 most = 0, longest = 0, saves = std::count(read.begin(), read.end(), true);
        const auto consider = [&](const Program& p) {
            widest = std::max({widest, p.registers[0].size(), p.registers[p.output].size()});
            most = std::max({most, Pass::room(p, 1) + p.kept_by_network(1), setup_room(p)});
            longest = std::max(longest, packs_of(p.row()));
        };
        for (i64 step = 0; step < call.length; ++step)
            for (const Lane& lane : lanes) {
                const Leg leg = leg_of(call, call.route[step], lane.number);
                if (leg.program) consider(*leg.program);
                if (leg.program && leg.gate()) consider(*leg.gate());
            }
        const i64 count = lanes.size();
        work = scratch.room(most + longest + (1 + (3 + saves) * count) * widest);
        numbers = reinterpret_cast<float*>(work + most);
        weight = work + most + longest;
        Vec* next = weight + widest;
        const auto take = [&] { return next += widest, next - widest; };
        for (Lane& lane : lanes) lane.features = take(), lane.spare = take(), lane.grown = take();
        saved = next;
    }

    // Lanes that leave their parents at this slot.
    void fork(i64 step) {
        for (; live < static_cast<i64>(lanes.size()); ++live) {
            Lane& lane = lanes[live];
            if (step != -1 - call.forks[lane.number]) return;
            const auto is_parent = [&](const Lane& each) { return each.number == call.parents[lane.number]; };
            const Lane& parent = *std::find_if(lanes.begin(), lanes.begin() + live, is_parent);
            std::copy(parent.features, parent.features + size, lane.features);
            lane.at = parent.at;
        }
    }

    // The point is complete: keep its features, if a bypass reads them.
    void arrive(i64 point) {
        for (i64 l = 0; l < live && read[point]; ++l, saved += widest)
            std::copy(lanes[l].features, lanes[l].features + size, lanes[l].at[point] = saved);
    }

    Pass enter(Leg leg) {
        if (leg.gathers()) gather(call, leg, network, work, numbers), leg.numbers = numbers;
        return pass_of(call, leg, network, work);
    }

    void through_block(Lane& lane, const Leg& leg) {
        Pass pass = enter(leg);
        pass.input = {lane.features, 0}, pass.output = {lane.spare, 0};
        pass.run_forward(pack, pack + 1, false, nothing, nothing);
        std::swap(lane.features, lane.spare);
    }

    void through_slot(i64 l, const Leg& leg) {
        Lane& lane = lanes[l];
        Vec* x = leg.is_bypass() ? lane.at[leg.slot->source] : lane.features;
        if (leg.gate()) {
            Pass gate = gate_of(call, leg, work);
            gate.input = {x, 0}, gate.output = {weight, 0};
            gate.run_forward(pack, pack + 1, false, nothing, nothing);
        }
        const Vec* s = leg.is_bypass() ? known(l, leg) : nullptr;
        if (!s) {
            Pass pass = enter(leg);
            pass.input = {x, 0}, pass.output = {leg.is_bypass() ? lane.grown : nullptr, 0};
            pass.run_forward(pack, pack + 1, false, nothing, nothing);
            s = pass.value(leg.program->output);
        } else {
            std::copy(s, s + leg.out, lane.grown);
        }
        mix(leg, lane.features, s, weight_of(leg, weight, leg.slot->alpha[leg.row]), lane.features);
    }

    // What a bypass gave in an earlier lane that left only after the point that it reads.
    const Vec* known(i64 l, const Leg& leg) const {
        const Vec* x = lanes[l].at[leg.slot->source];
        const i64* owners = leg.slot->owners;
        for (i64 other = 0; other < l; ++other) {
            const i64 row = leg.slot->rows[lanes[other].number];
            if (row < 0 || lanes[other].at[leg.slot->source] != x) continue;
            if (owners && owners[row] == owners[leg.row]) return lanes[other].grown;
        }
        return nullptr;
    }

  public:
    Inference(const Call& c, i64 network, i64 pack, Scratch& scratch)
        : call(c), network(network), pack(pack), read(c.points) {
        for (i64 l = call.first[network]; l < call.first[network + 1]; ++l)
            lanes.push_back({call.lanes[l], nullptr, nullptr, nullptr, std::vector<Vec*>(call.points)});
        for (i64 step = 0; step < call.length; ++step)
            if (call.route[step] < 0 && call.slots[-1 - call.route[step]].source >= 0)
                read[call.slots[-1 - call.route[step]].source] = true;
        size = call.blocks[0].program->registers[0].size();
        place(scratch);
    }

    void run() {
        load_input(call, network, pack, size, lanes[0].features);
        for (i64 step = 0; step < call.length; ++step) {
            const i64 place = call.route[step];
            if (place >= 0) arrive(place);
            fork(place);
            i64 out = size;
            for (i64 l = 0; l < live; ++l) {
                const Leg leg = leg_of(call, place, lanes[l].number);
                if (!leg.program) continue;
                leg.block ? through_block(lanes[l], leg) : through_slot(l, leg);
                out = leg.out;
            }
            size = out;
        }
        for (const Lane& lane : lanes) score_lane(lane);
    }

    // Losses of the network as it is, hits of every lane, position by position; and its logits, if anybody asks.
    void score_lane(const Lane& lane) const {
        const i64 positions = call.positions, classes = size / positions, begin = pack * PACK;
        const i64 samples = std::min(PACK, call.batch - begin), from = (lane.number * call.batch + begin) * positions;
        if (call.logits)
            store_pack(lane.features, size, samples, size, call.logits + (lane.number * call.batch + begin) * size);
        for (i64 t = 0; t < positions; ++t)
            score(lane.features + t * classes, classes, call.targets + begin * positions + t, positions, samples,
                  lane.number < call.networks ? call.losses + from + t : nullptr, call.hits + from + t);
    }
};

}  // namespace
}  // namespace esper

extern "C" void esper_infer(const void* arguments) {
    const auto& call = *static_cast<const esper::Call*>(arguments);
    const esper::i64 packs = esper::packs_of(call.batch), tasks = call.networks * packs;
#pragma omp parallel for num_threads(call.threads) schedule(dynamic) if (call.threads > 1 && tasks > 1)
    for (esper::i64 task = 0; task < tasks; ++task) {
        thread_local esper::Scratch scratch;
        esper::Inference(call, task / packs, task % packs, scratch).run();
    }
}
