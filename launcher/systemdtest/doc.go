// Package systemdtest is a machine with a real systemd to test on: a container
// of systemd-nspawn whose /usr is this machine's, read-only, and whose rest is
// made for the test and gone with it.
//
//	c := systemdtest.Boot(t, systemdtest.Options{
//		Etc:   map[string]string{"systemd/logind.conf": "[Login]\nKillUserProcesses=yes\n"},
//		Binds: map[string]string{"/usr/local/bin": dir}, // holds a program to try
//	})
//	out := c.Run("systemctl", "show", "--property=ActiveState", "x.service")
//	c.Login("lab", "sleep 600")                 // a session of logind
//	os.ReadFile(c.Path("/run/there/it/is"))     // its files, from here
//
// It boots to multi-user.target in less than a second, with the system bus,
// logind, the journal and a network of its own that has nothing but lo. None of
// this machine's services run: what starts them is in /etc, which the container
// does not share. Processes have pids of the container's.
//
// A test without systemd-nspawn is skipped and says what to install, and fails
// where VMRUN_TEST_REQUIRE=1 says that nothing may be skipped.
//
// # Nothing is left
//
// nspawn runs in a mount namespace and in a control group of its own, so several
// containers may run at the same time, and this machine sees no mount, no file
// in /run and, when the test is over, no control group of theirs. They die with
// the test, or else with its process.
package systemdtest
