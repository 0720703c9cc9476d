//! The services of a tap as a guest finds them: real clients in a network namespace of their own,
//! on the other end of a veth that stands for the tap.

mod clients;
mod cloud_init;
mod dns;
mod ipv6;
mod link;
