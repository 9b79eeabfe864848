//! Images: references, OCI layouts and archives, the content-addressed EROFS store.
