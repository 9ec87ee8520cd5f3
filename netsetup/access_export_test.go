package netsetup

// SetResolverFiles makes other files name the host's resolvers, and returns the
// way back.
func SetResolverFiles(paths ...string) (restore func()) {
	old := resolverFiles
	resolverFiles = paths
	return func() { resolverFiles = old }
}

// LockShared and SharedFile are what guards shared links.
var LockShared = lockShared

const SharedFile = sharedFile
