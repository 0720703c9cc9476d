//! Real packets through real rules, in network namespaces of their own. Guests are taps whose other
//! end the test holds, so that each packet is under its control and seen where it arrives.

mod packet;
mod random;
mod world;

mod changes;
mod flows;
mod forwarding;
mod oracle;
mod properties;
mod reconcile;
mod size;
mod spoofing;
mod translation;
