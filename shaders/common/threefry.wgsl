// Threefry-2x32 with 20 rounds (Salmon et al. 2011): the same words as the host's generator.
fn threefry_mix(x: vec2<u32>, r: u32) -> vec2<u32> {
    let a = x.x + x.y;
    return vec2<u32>(a, ((x.y << r) | (x.y >> (32u - r))) ^ a);
}

fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    let k = array<u32, 3>(key.x, key.y, 0x1BD11BDAu ^ key.x ^ key.y);
    var x = counter + key;
    x = threefry_mix(threefry_mix(threefry_mix(threefry_mix(x, 13u), 15u), 26u), 6u);
    x += vec2<u32>(k[1], k[2] + 1u);
    x = threefry_mix(threefry_mix(threefry_mix(threefry_mix(x, 17u), 29u), 16u), 24u);
    x += vec2<u32>(k[2], k[0] + 2u);
    x = threefry_mix(threefry_mix(threefry_mix(threefry_mix(x, 13u), 15u), 26u), 6u);
    x += vec2<u32>(k[0], k[1] + 3u);
    x = threefry_mix(threefry_mix(threefry_mix(threefry_mix(x, 17u), 29u), 16u), 24u);
    x += vec2<u32>(k[1], k[2] + 4u);
    x = threefry_mix(threefry_mix(threefry_mix(threefry_mix(x, 13u), 15u), 26u), 6u);
    return x + vec2<u32>(k[2], k[0] + 5u);
}
