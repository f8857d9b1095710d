//! The workers that register themselves before `main`. A crate that nothing names is left out
//! by the linker: each is named here, and a test asserts the list.

pub(crate) mod containerd;
mod network;
pub(crate) mod runc;

#[cfg(test)]
mod tests {
    #[test]
    fn exactly_these_workers_are_registered() {
        let all = cooper_worker::registered();
        let list: Vec<_> = all
            .iter()
            .map(|known| (known.priority, known.name))
            .collect();
        assert_eq!(list, [(0, "runc"), (1, "containerd")]);
    }
}
