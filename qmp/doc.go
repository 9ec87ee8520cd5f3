// Package qmp speaks the QEMU Machine Protocol at both ends: a Client for
// QEMU's monitor, and a Server that lets many clients share one monitor.
//
// The words are go-qemu's (Monitor, Event, Version); the transport is ours.
// go-qemu's own hands out replies that alias its read buffer, matches them by
// order, cannot read lines over 64 KiB, and hangs when nobody reads events.
//
// # Rooms
//
//	lexer.go     where one JSON value ends and the next begins (pure)
//	check.go     what QEMU's parser refuses and encoding/json lets pass (pure)
//	codec.go     messages to bytes and back (pure)
//	frames.go    an io.Reader cut into messages, with bounds on size and depth
//	client.go    Client: the connection's life and the reader
//	execute.go   one command: id, write, wait
//	files_linux.go, peer_linux.go   the system calls
//	events.go    bounded queues of events that never block who fills them
//	commands.go  typed commands
//	monitor.go   go-qemu's Monitor on top of Client
//	vocabulary.go  Event and Version
//	server.go    Server: listener, clients, broadcast
//	session.go   one client of a Server
//	forward.go   a Server's handler that passes commands on to a Client
//
// # Who owns what
//
// A Client's reader goroutine is the only one that reads; it matches replies
// to waiting calls by id, feeds subscriptions, and is the last to leave: when
// it has gone, Done is closed and Err says why. Writers take turns. Every
// reply owns its bytes.
//
// Events can be lost, on purpose: a queue that nobody empties drops its
// oldest and counts it. Whoever keeps state from events re-queries when
// Dropped grows.
//
// A Server runs three goroutines for each client: a reader, which also
// notices that the client has gone; an executor, which runs its requests in
// order; a writer. A fourth waits for them and closes the connection. Serve
// returns when all have ended.
//
// # Bounds
//
// Neither end trusts the other, and a guest that has taken over its QEMU is to
// find no way to the host's memory: 16 MiB and 1024 levels for one message, the
// latter as in QEMU's own json-streamer.c; 2 MiB for an answer that is decoded
// into a Go value; 16 KiB for an event, so that full queues stay small; a server
// reads requests of 256 KiB, and 8 of a client ahead.
package qmp
