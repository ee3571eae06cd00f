//! The order in which Keras lists the layers of a functional model. Its files call the weights of layers by their class
//! and their place in this order, so it has to be Keras's own: by depth, then by a search from the outputs.

use std::cmp::Reverse;

/// A layer or an operation, with what each of its calls reads, in the order of their arguments: layers and calls by
/// number.
#[derive(Debug, Clone, Default)]
pub(super) struct Called {
    pub calls: Vec<Vec<(usize, usize)>>,
}

/// The layers that outputs follow from and the inputs, in Keras's order. References to what is not there are passed
/// over.
pub(super) fn order(all: &[Called], inputs: &[usize], outputs: &[(usize, usize)]) -> Vec<usize> {
    let known = |&(layer, call): &(usize, usize)| all.get(layer).is_some_and(|l| call < l.calls.len());
    let mut begun: Vec<Vec<bool>> = all.iter().map(|l| vec![false; l.calls.len()]).collect();
    // The number of each layer by when the search comes to it, and the calls, each after those that it reads.
    let (mut found, mut count, mut sorted) = (vec![None; all.len()], 0, Vec::new());
    for &output in outputs.iter().filter(|o| known(o)) {
        let mut path = vec![(output, 0)];
        while let Some(((layer, call), at)) = path.pop() {
            if at == 0 && std::mem::replace(&mut begun[layer][call], true) {
                continue;
            }
            if found[layer].is_none() {
                (found[layer], count) = (Some(count), count + 1);
            }
            match all[layer].calls[call].get(at) {
                Some(&read) => {
                    path.push(((layer, call), at + 1));
                    if known(&read) {
                        path.push((read, 0));
                    }
                }
                None => sorted.push((layer, call)),
            }
        }
    }
    let mut depths: Vec<Vec<usize>> = all.iter().map(|l| vec![0; l.calls.len()]).collect();
    let mut deepest: Vec<usize> = vec![0; all.len()];
    for &(layer, call) in sorted.iter().rev() {
        let depth = depths[layer][call].max(deepest[layer]);
        (depths[layer][call], deepest[layer]) = (depth, depth);
        for &(read, number) in all[layer].calls[call].iter().filter(|r| known(r)) {
            depths[read][number] = depths[read][number].max(depth + 1);
        }
    }
    let unread = inputs.iter().copied().filter(|&i| found.get(i).is_some_and(Option::is_none));
    let mut ordered: Vec<usize> = unread.chain((0..all.len()).filter(|&l| found[l].is_some())).collect();
    // Inputs that nothing reads come first among those without depth.
    ordered.sort_by_key(|&layer| (Reverse(deepest[layer]), found[layer].map_or(0, |n: usize| n + 1)));
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(calls: &[&[usize]]) -> Called {
        Called { calls: calls.iter().map(|reads| reads.iter().map(|&r| (r, 0)).collect()).collect() }
    }

    #[test]
    fn layers_are_ordered_by_depth_and_then_by_a_search_from_the_outputs() {
        // Two inputs, of which the second goes through one layer more, and a layer 5 that nothing reads.
        let all = [
            called(&[&[]]),
            called(&[&[]]),
            called(&[&[1]]),
            called(&[&[0]]),
            called(&[&[3, 2]]),
            called(&[&[3]]),
            called(&[&[]]),
        ];
        assert_eq!(order(&all, &[0, 1, 6], &[(4, 0)]), [0, 1, 3, 2, 6, 4]);
        assert_eq!(order(&all, &[0, 1, 6], &[(2, 0), (4, 0)]), [1, 0, 2, 3, 6, 4]);
    }

    #[test]
    fn a_layer_that_is_called_twice_is_as_deep_as_its_deeper_call() {
        // 1 reads the input 0 and then itself; 2 reads the second of these.
        let twice = Called { calls: vec![vec![(0, 0)], vec![(1, 0)]] };
        let last = Called { calls: vec![vec![(1, 1), (0, 0)]] };
        assert_eq!(
            order(&[called(&[&[]]), twice, last.clone(), called(&[&[0]])], &[0], &[(2, 0), (3, 0)]),
            [0, 1, 2, 3]
        );
        // Nor does a circle or a reference to nothing stop it.
        let circle = Called { calls: vec![vec![(0, 0), (7, 0), (1, 3)]] };
        assert_eq!(order(&[circle, last], &[], &[(1, 0)]), [0, 1]);
    }
}
