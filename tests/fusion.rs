//! Elementwise work that one step can do is one step, and computes the same.

mod common;

use common::{assert_close, devices};
use mnemon::device::DeviceKind;
use mnemon::graph::{Expr, Graph, Op, Value};
use mnemon::params::Tensor;
use mnemon::scheduler::{Batch, Capacity};

/// The outputs of `graph` over `x` [3, 4] and `row` [4], and how many elementwise steps computed them on each device.
fn check(build: impl Fn(&mut Graph, Value, Value) -> Vec<Value>, fused: usize) {
    let batch = Batch::dense(1, 1).unwrap();
    let mut wanted: Option<Vec<Vec<f64>>> = None;
    for device in devices() {
        let mut g = Graph::new();
        let (x, row) = (g.persistent("x", [3, 4]).unwrap(), g.persistent("row", [4]).unwrap());
        let outputs = build(&mut g, x, row);
        for (at, &output) in outputs.iter().enumerate() {
            g.output(&format!("y{at}"), output).unwrap();
        }
        let mut session = device.session().unwrap();
        let values = (0..12).map(|i| 0.3 * i as f32 - 1.7).collect();
        session.set("x", &Tensor::new(&[3, 4], values).unwrap()).unwrap();
        session.set("row", &Tensor::new(&[4], vec![0.5, -1.0, 2.0, 0.25]).unwrap()).unwrap();
        let mut executable = session.load(&g, &Capacity::exactly(&batch)).unwrap();
        let steps = executable.program().stage_steps().filter(|s| matches!(s.op, Op::Elementwise { .. })).count();
        session.run(&mut executable, &batch, &[]).unwrap();
        let read = |at: usize| -> Vec<f64> {
            let y = session.output(&executable, &format!("y{at}")).unwrap();
            y.f32s().unwrap().iter().map(|&v| f64::from(v)).collect()
        };
        let got: Vec<Vec<f64>> = (0..outputs.len()).map(read).collect();
        if device.kind() == DeviceKind::Reference {
            wanted = Some(got);
            continue;
        }
        assert_eq!(steps, fused, "{device:?}");
        for (got, wanted) in got.iter().zip(wanted.as_ref().expect("the reference comes first")) {
            assert_close(&format!("{device:?}"), got, wanted, 1e-6);
        }
    }
}

fn x(at: usize) -> Expr {
    Expr::Input(at)
}

#[test]
fn chains_are_one_step() {
    check(
        |g, v, row| {
            let a = g.elementwise(x(0).tanh() * x(1), &[v, row]).unwrap();
            let b = g.elementwise(x(1) - x(0) * Expr::Const(2.0), &[a, v]).unwrap();
            vec![g.elementwise(x(1).sigmoid() + x(0), &[row, b]).unwrap()]
        },
        1,
    );
}

/// A GPU makes of a product what is wanted of it as it stores it.
#[test]
fn a_product_has_an_epilogue() {
    let batch = Batch::dense(1, 1).unwrap();
    let activation = x(0).tanh().max(Expr::Const(-0.25)) - x(0) * Expr::Const(0.5);
    let mut wanted: Option<Vec<f64>> = None;
    for device in devices() {
        for read_twice in [false, true] {
            let mut g = Graph::new();
            let (a, w, b) = (g.persistent("a", [5, 7]), g.persistent("w", [6, 7]), g.persistent("b", [6]));
            let y = g.linear(a.unwrap(), w.unwrap(), Some(b.unwrap())).unwrap();
            let z = g.elementwise(activation.clone(), &[y]).unwrap();
            g.output("z", z).unwrap();
            if read_twice {
                g.output("y", y).unwrap();
            }
            let mut session = device.session().unwrap();
            for (name, shape) in [("a", vec![5, 7]), ("w", vec![6, 7]), ("b", vec![6])] {
                let values = (0..shape.iter().product()).map(|i: usize| (i * 7 % 11) as f32 / 5.0 - 1.0).collect();
                session.set(name, &Tensor::new(&shape, values).unwrap()).unwrap();
            }
            let mut executable = session.load(&g, &Capacity::exactly(&batch)).unwrap();
            let apart = executable.program().stage_steps().any(|s| matches!(s.op, Op::Elementwise { .. }));
            let on_gpu = matches!(device.kind(), DeviceKind::Gpu | DeviceKind::Software);
            assert_eq!(apart, read_twice || !on_gpu, "{device:?}");
            session.run(&mut executable, &batch, &[]).unwrap();
            let got = session.output(&executable, "z").unwrap();
            let got: Vec<f64> = got.f32s().unwrap().iter().map(|&v| f64::from(v)).collect();
            match &wanted {
                Some(wanted) => assert_close(&format!("{device:?}"), &got, wanted, 1e-6),
                None => wanted = Some(got),
            }
        }
    }
}

#[test]
fn what_others_read_stays() {
    // Read twice, so computed once.
    check(
        |g, v, row| {
            let a = g.elementwise((x(0) * x(1)).exp(), &[v, row]).unwrap();
            vec![g.elementwise(-x(0), &[a]).unwrap(), g.elementwise(x(0).tanh(), &[a]).unwrap()]
        },
        3,
    );
    // An output.
    check(
        |g, v, row| {
            let a = g.elementwise(x(0) * x(1), &[v, row]).unwrap();
            vec![a, g.elementwise(-x(0), &[a]).unwrap()]
        },
        2,
    );
    // Long, and read twice by one expression: it would be computed twice.
    check(
        |g, v, row| {
            let long = (0..10).fold(x(0), |e, _| (e + x(1)).tanh());
            let a = g.elementwise(long, &[v, row]).unwrap();
            vec![g.elementwise(x(0) * x(0), &[a]).unwrap()]
        },
        2,
    );
    // Of another shape: it would be computed for every row.
    check(
        |g, v, row| {
            let a = g.elementwise(x(0).exp(), &[row]).unwrap();
            vec![g.elementwise(x(0) * x(1), &[v, a]).unwrap()]
        },
        2,
    );
}
