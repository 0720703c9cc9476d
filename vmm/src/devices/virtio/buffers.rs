//! The readable or the writable part of a descriptor chain, as slices of guest memory.

use vm_memory::VolatileSlice;

/// Bytes of guest memory in the order of their chain. The guest can write them meanwhile, so
/// nothing in them may be looked at twice.
#[derive(Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Buffers<'m> {
    /// Appends a slice. A chain holds less than 4 GiB, so that the length can't overflow.
    pub(crate) fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.slices.push(slice);
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slices, none of them empty.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// Cuts in two: keeps the first `at` bytes and returns the rest, which is empty if there is
    /// no rest.
    pub fn split_off(&mut self, at: usize) -> Buffers<'m> {
        let mut before = 0;
        let mut tail = Buffers::default();
        for slice in std::mem::take(self).slices {
            let keep = at.saturating_sub(before).min(slice.len());
            before += slice.len();
            let (head, rest) = slice
                .split_at(keep)
                .expect("keep is at most the slice's length");
            self.push(head);
            tail.push(rest);
        }
        tail
    }

    /// Copies from the front into `data`; returns how many bytes there were.
    pub fn copy_to(&self, data: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if done == data.len() {
                break;
            }
            done += slice.copy_to(&mut data[done..]);
        }
        done
    }

    /// Copies `data` to the front; returns how many bytes had room.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if done == data.len() {
                break;
            }
            let count = slice.len().min(data.len() - done);
            slice.copy_from(&data[done..done + count]);
            done += count;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers<'m>(parts: &'m mut [Vec<u8>]) -> Buffers<'m> {
        let mut buffers = Buffers::default();
        for part in parts {
            buffers.push(VolatileSlice::from(part.as_mut_slice()));
        }
        buffers
    }

    fn bytes(buffers: &Buffers) -> Vec<u8> {
        let mut data = vec![0; buffers.len()];
        assert_eq!(buffers.copy_to(&mut data), data.len());
        data
    }

    #[test]
    fn a_split_at_any_place_loses_no_byte() {
        let parts = [vec![0, 1, 2], vec![], vec![3], vec![4, 5, 6, 7]];
        let all: Vec<u8> = parts.concat();
        for at in 0..all.len() + 2 {
            let mut parts = parts.clone();
            let mut head = buffers(&mut parts);
            let tail = head.split_off(at);
            let cut = at.min(all.len());
            assert_eq!(bytes(&head), all[..cut]);
            assert_eq!(bytes(&tail), all[cut..]);
            assert!(head.slices().iter().all(|slice| !slice.is_empty()));
            assert!(tail.slices().iter().all(|slice| !slice.is_empty()));
        }
    }

    #[test]
    fn copies_stop_at_the_shorter_side() {
        let mut parts = [vec![1, 2], vec![3, 4]];
        let buffers = buffers(&mut parts);
        let mut three = [0; 3];
        assert_eq!(buffers.copy_to(&mut three), 3);
        assert_eq!(three, [1, 2, 3]);
        let mut six = [0; 6];
        assert_eq!(buffers.copy_to(&mut six), 4);
        assert_eq!(buffers.copy_from(&[9; 3]), 3);
        assert_eq!(bytes(&buffers), [9, 9, 9, 4]);
        assert_eq!(buffers.copy_from(&[8; 6]), 4);
    }
}
