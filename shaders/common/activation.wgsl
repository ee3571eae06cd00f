// The functions of gates by their curve, see the host's `Curve`, and their derivatives. Curves are override constants, so
// that one case is left of each switch.

fn exp_less_one(x: f32) -> f32 {
    // 2t/(1-t) with t = tanh(x/2): no cancellation near zero.
    let t = tanh_f32(0.5 * x);
    return select(2.0 * t / (1.0 - t), exp_any_f32(x) - 1.0, x > 1.0);
}

fn activate(curve: u32, alpha: f32, beta: f32, x: f32) -> f32 {
    switch curve {
        case 0u: { return alpha * x + beta; }
        case 1u: { return select(alpha * x, x, x > 0.0); }
        case 2u: { return select(0.0, x, x > alpha); }
        case 3u: { return alpha * tanh_f32(beta * x); }
        case 4u: { return clamp(alpha * x + beta, 0.0, 1.0); }
        case 5u: { return beta * select(alpha * exp_less_one(x), x, x > 0.0); }
        case 6u: { return x / (1.0 + abs(x)); }
        case 7u: { return max(x, 0.0) + log(1.0 + exp_any_f32(-abs(x))); }
        case 8u: { return sigmoid_f32(x); }
        case 9u: { return x * sigmoid_f32(x); }
        default: { return exp_any_f32(x); }
    }
}

fn activation_slope(curve: u32, alpha: f32, beta: f32, x: f32) -> f32 {
    switch curve {
        case 0u: { return alpha; }
        case 1u: { return select(alpha, 1.0, x > 0.0); }
        case 2u: { return select(0.0, 1.0, x > alpha); }
        case 3u: {
            let t = tanh_f32(beta * x);
            return alpha * beta * (1.0 - t * t);
        }
        case 4u: {
            let y = alpha * x + beta;
            return select(0.0, alpha, y > 0.0 && y < 1.0);
        }
        case 5u: { return beta * select(alpha * exp_any_f32(min(x, 0.0)), 1.0, x > 0.0); }
        case 6u: { return 1.0 / ((1.0 + abs(x)) * (1.0 + abs(x))); }
        case 7u: { return sigmoid_f32(x); }
        case 8u: {
            let s = sigmoid_f32(x);
            return s * (1.0 - s);
        }
        case 9u: {
            let s = sigmoid_f32(x);
            return s + x * s * (1.0 - s);
        }
        default: { return exp_any_f32(x); }
    }
}
