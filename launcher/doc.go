// Package launcher is one guest's life: plan, apply, run, undo.
//
// NewPlan is pure: a spec and what the host looks like go in, and out comes a
// Plan, the list of steps that start the guest, with the descriptors that QEMU
// gets and its command line. Run is the guest's supervisor. It locks the
// guest's name, clears or adopts what a dead predecessor left, applies the plan
// step by step, and then looks after the guest until it ends. Where the guest's
// policy says so (restart.go) it begins another life of the guest then: a plan, a
// record, a QEMU and a network of its own under the same name and control socket.
// Start puts a supervisor in the background and waits for its word.
//
// Four rules hold everywhere:
//
//   - A step that acquires pushes its undo on the next line. The undos run in
//     reverse when a later step fails, and at the guest's end.
//   - A guest outlives its supervisor. Until the commit mark is written, right
//     before the guest's CPUs run, a start is half done and the next command
//     ends what is left of it; from then on the next Run adopts.
//   - QEMU is known by its root, which was made on the run directory, or by holding
//     the directory's pipe as its standard error; never by a pid alone. Signals go
//     through a pidfd.
//   - Whatever keeps the guest's network namespace alive is closed when QEMU's
//     pidfd says that it is gone, so that the kernel can remove the children.
//
// What becomes of many guests when their file is to be made so is decided in
// fleet.go, and in what order and how many at a time in schedule.go; cmd carries it
// out.
//
// One goroutine owns a running guest's state (supervisor.go). What happens next
// is decided by a pure function (state.go); what is done about it stands beside
// it as actions. Everything that asks the kernel for something is in a file
// that ends in _linux.go.
//
// A supervisor holds the capabilities that privilege_linux.go lists, each with what
// it is for. Who may use a guest beside root is in members_linux.go.
//
// The run directory of a guest holds lock (whose holder is its supervisor),
// state (this package's record, JSON), control.sock (the supervisor, QMP),
// console.sock (the serial console), qemu.sock and serial.sock (QEMU's own ends
// of the two, for the supervisor alone), vnc.sock (the screen, of a guest with
// one), agent.sock (QEMU's end of the guest agent's channel, free while the
// supervisor asks nothing), stderr and companions (pipes, the standard error of QEMU
// and of the processes that serve its TPM and shares, which the supervisor reads),
// and the logs: console.log, qemu.log and companions.log (what came out of those
// pipes) and supervisor.log, each bounded, with one older part beside it.
package launcher
