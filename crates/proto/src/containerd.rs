//! containerd's other services, as far as a daemon asks for them, and the options of its
//! runtimes.

pub mod types {
    tonic::include_proto!("containerd.types");
}
#[doc(hidden)]
pub mod v1 {
    pub mod types {
        tonic::include_proto!("containerd.v1.types");
    }
}
pub mod runc {
    pub mod v1 {
        tonic::include_proto!("containerd.runc.v1");
    }
}
pub mod runtimeoptions {
    pub mod v1 {
        tonic::include_proto!("runtimeoptions.v1");
    }
}
pub mod services {
    pub mod containers {
        pub mod v1 {
            tonic::include_proto!("containerd.services.containers.v1");
        }
    }
    pub mod diff {
        pub mod v1 {
            tonic::include_proto!("containerd.services.diff.v1");
        }
    }
    pub mod images {
        pub mod v1 {
            tonic::include_proto!("containerd.services.images.v1");
        }
    }
    pub mod introspection {
        pub mod v1 {
            tonic::include_proto!("containerd.services.introspection.v1");
        }
    }
    pub mod leases {
        pub mod v1 {
            tonic::include_proto!("containerd.services.leases.v1");
        }
    }
    pub mod snapshots {
        pub mod v1 {
            tonic::include_proto!("containerd.services.snapshots.v1");
        }
    }
    pub mod tasks {
        pub mod v1 {
            tonic::include_proto!("containerd.services.tasks.v1");
        }
    }
    pub mod version {
        pub mod v1 {
            tonic::include_proto!("containerd.services.version.v1");
        }
    }
}
