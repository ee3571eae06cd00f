// Whether workgroups meet, and see what the others wrote before: at each round each writes a word, meets the others and reads
// the words of two of them. Grid = as many as are to run at a time, each with all threads and all memory that one may have.
// #import grid
// #import meeting

struct Params {
    groups: u32, // workgroups
    rounds: u32,
}

override THREADS: u32 = 64u;
override WORDS: u32 = 64u; // of workgroup memory, at least THREADS

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> words: array<atomic<u32>>; // what was wrong, then two slots of a word of each workgroup

var<workgroup> filled: array<u32, WORDS>;

// What workgroup `group` writes at `round`.
fn word_of(group: u32, round: u32) -> u32 {
    return (group + 1u) * 2654435761u + round * 40503u;
}

// Whether the word that was read last round is there.
fn is_there(group: u32, round: u32) -> bool {
    return atomicLoad(&words[1u + round % 2u * params.groups + group]) == word_of(group, round);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    if (group >= params.groups) {
        return;
    }
    for (var i = local; i < WORDS; i += THREADS) {
        filled[i] = i;
    }
    workgroupBarrier();
    for (var round = 0u; round < params.rounds; round++) {
        // Each round another thread writes, through workgroup memory that so has to be there.
        let i = (round * 7919u + group) % WORDS;
        if (local == i % THREADS) {
            atomicStore(&words[1u + round % 2u * params.groups + group], word_of(group, round) + filled[i] - i);
        }
        if (!meet(0u, (round + 1u) * params.groups, local == 0u)) {
            return;
        }
        let next = is_there((group + 1u) % params.groups, round);
        let far = is_there((group + params.groups / 2u) % params.groups, round);
        if (!next || !far) {
            atomicAdd(&words[0], 1u);
        }
    }
}
