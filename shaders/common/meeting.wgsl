// A barrier among workgroups. None is sure to run while another waits (Vulkan promises nothing of the kind), so each waits for
// PATIENCE looks only, then says that it leaves. What is passed on between meetings goes through atomics.

override PATIENCE: u32 = 1u;

@group(0) @binding(10) var<storage, read_write> meeting: array<atomic<u32>>;

var<workgroup> together: u32;

// Of a place's word: somebody has left. The others count who has come.
const LEFT: u32 = 1u << 31u;

// Comes to the place at word `at` of `meeting` and waits until `wanted` have come since it was cleared. Whether they have.
// One thread of the workgroup is its `speaker`.
fn meet(at: u32, wanted: u32, speaker: bool) -> bool {
    // What this workgroup wrote is there before it says so.
    storageBarrier();
    workgroupBarrier();
    if (speaker) {
        var word = atomicAdd(&meeting[at], 1u) + 1u;
        for (var look = 0u; look < PATIENCE && word < wanted; look++) {
            // Compilers move a load that nothing in the loop changes out of it (llvmpipe's does), an addition never.
            word = atomicAdd(&meeting[at], 0u);
        }
        // Who comes to where somebody has left stays no longer than it takes to see it: then `word` is large.
        let have_come = (word & ~LEFT) >= wanted;
        if (!have_come) {
            atomicOr(&meeting[at], LEFT);
        }
        together = u32(have_come);
    }
    storageBarrier();
    return workgroupUniformLoad(&together) != 0u;
}

fn has_left(at: u32) -> bool {
    return atomicLoad(&meeting[at]) >= LEFT;
}
