//! Room for what a step needs besides its values, kept from one run to the next.

use super::aligned::Aligned;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// What has been used before and may be used again, by any thread.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Vec<Aligned>>);

impl Room {
    /// Room for so many values, which are whatever was left there.
    pub fn take(&self, len: usize) -> Taken<'_> {
        // A thread that failed left the list whole.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = (0..kept.len()).filter(|&at| kept[at].len() >= len).min_by_key(|&at| kept[at].len());
        // Where none is large enough the largest makes way, so that there are never more than were used at a time.
        let at = fits.or_else(|| (0..kept.len()).max_by_key(|&at| kept[at].len()));
        let found = at.map(|at| kept.swap_remove(at)).filter(|found| found.len() >= len);
        drop(kept);
        Taken { data: found.unwrap_or_else(|| Aligned::zeros(len)), len, room: self }
    }

    /// Room for so many values, all of them zero.
    pub fn zeros(&self, len: usize) -> Taken<'_> {
        let mut taken = self.take(len);
        taken.fill(0.0);
        taken
    }
}

/// Room that is given back.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    data: Aligned,
    len: usize,
    room: &'a Room,
}

impl Deref for Taken<'_> {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Taken<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.0.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_no_more_is_kept_than_was_used_at_a_time() {
        let room = Room::default();
        let first = room.take(100).as_ptr();
        assert_eq!(room.take(40).as_ptr(), first, "it is large enough");
        for size in 1..50 {
            let (mut a, b) = (room.take(size * 7), room.zeros(size));
            assert_eq!((a.len(), b.len()), (size * 7, size));
            assert!(b.iter().all(|&x| x == 0.0));
            a.fill(1.0);
        }
        assert_eq!(room.0.lock().unwrap().len(), 2);
    }
}
