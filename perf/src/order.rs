//! The order in which what is compared takes its turns. What runs first in each turn, or always after the same other one,
//! is measured under other conditions than the rest.

/// Of `n` things in this turn. In `2 n` turns each is twice at each place, and twice right after each other one.
pub(crate) fn order(n: usize, turn: usize) -> Vec<usize> {
    // 0, 1, n - 1, 2, n - 2 ...: each step is as wide as no other one, so each pair of neighbours comes up once while the
    // whole moves on by one in each turn. For odd n that is half of the pairs, and the mirrored turns have the others.
    let zigzag = (0..n).map(|place| if place % 2 == 1 { place.div_ceil(2) } else { n - place / 2 });
    let mut order: Vec<usize> = zigzag.map(|at| (at + turn) % n).collect();
    if turn / n % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_always_first_or_always_after_the_same() {
        for n in 2..=8 {
            let (mut at, mut after) = (vec![vec![0; n]; n], vec![vec![0; n]; n]);
            for turn in 0..2 * n {
                let order = order(n, turn);
                order.iter().enumerate().for_each(|(place, &one)| at[one][place] += 1);
                order.windows(2).for_each(|pair| after[pair[0]][pair[1]] += 1);
            }
            assert!(at.iter().flatten().all(|&times| times == 2), "{n}: {at:?}");
            let right = |(one, next, times): (usize, usize, i32)| times == if one == next { 0 } else { 2 };
            let mut pairs = (0..n).flat_map(|one| (0..n).map(move |next| (one, next)));
            assert!(pairs.all(|(one, next)| right((one, next, after[one][next]))), "{n}: {after:?}");
        }
    }
}
