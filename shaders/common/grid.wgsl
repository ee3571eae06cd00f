// A linear workgroup number from a grid folded into x and y, since one dimension holds only 65,535 workgroups.
fn linear_workgroup(workgroup: vec3<u32>, count: vec3<u32>) -> u32 {
    return workgroup.y * count.x + workgroup.x;
}
