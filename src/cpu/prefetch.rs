//! Memory that is asked for before it is needed.

/// Asks for the cache line of an address to come into the second cache, where the processor is known to do so. Any address will do.
#[inline(always)]
pub(super) fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which changes nothing that a program sees and takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_as_they_are_and_none_are_needed() {
        let values = [1.0, 2.0];
        prefetch(values.as_ptr());
        prefetch(std::ptr::null());
        assert_eq!(values, [1.0, 2.0]);
    }
}
