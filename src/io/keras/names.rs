//! What Keras calls the groups of layers, and what its layers are called here.

use std::collections::BTreeMap;

/// What Keras calls the group of the next layer of a class, of which `classes` counts those before.
pub(super) fn numbered(classes: &mut BTreeMap<String, usize>, class: &str) -> String {
    let snake = snake_case(class);
    let count = classes.entry(snake.clone()).or_insert(0);
    *count += 1;
    if *count == 1 { snake } else { format!("{snake}_{}", *count - 1) }
}

/// A layer's name as one of a network, which knows no dots.
pub(super) fn node_name(name: &str) -> String {
    name.replace('.', "_")
}

/// `LayerNormalization` as `layer_normalization`, `LSTM` as `lstm`: by Keras's rule.
pub(super) fn snake_case(class: &str) -> String {
    let characters: Vec<char> = class.chars().collect();
    let mut snake = String::new();
    for (at, &c) in characters.iter().enumerate() {
        let after_small = at > 0 && (characters[at - 1].is_lowercase() || characters[at - 1].is_ascii_digit());
        let before_small = at > 0 && characters.get(at + 1).is_some_and(|n| n.is_lowercase());
        if c.is_uppercase() && at > 0 && (after_small && !characters[at - 1].is_ascii_digit() || before_small) {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::snake_case;

    #[test]
    fn groups_are_called_as_keras_does() {
        for (class, group) in [
            ("LSTM", "lstm"),
            ("LayerNormalization", "layer_normalization"),
            ("TimeDistributed", "time_distributed"),
            ("GlobalMaxPooling1D", "global_max_pooling1d"),
            ("LSTMCell", "lstm_cell"),
            ("Dense", "dense"),
        ] {
            assert_eq!(snake_case(class), group);
        }
    }
}
