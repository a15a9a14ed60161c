//! Who is behind a socket: process, user, package, cgroup, and the container, pod or service around them.

pub mod cgroup;
#[cfg(test)]
mod cgroup_layouts;
pub mod cgroup_tree;
pub mod cmdline;
pub mod conntrack;
pub mod controller;
pub mod desk;
pub(crate) mod files;
pub mod names;
pub mod packages;
pub mod process;
pub mod procfs;
pub mod runtimes;
pub mod secrets;
pub mod users;
pub mod workload;
