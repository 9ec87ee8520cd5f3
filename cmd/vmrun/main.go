// Command vmrun starts virtual machines whose NICs are macvtap children of a
// physical NIC, and looks after them.
//
// One file holds one verb; guests.go says which guests its arguments mean, and ui.go
// holds every word that several of them say.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"vmrun/launcher"
)

func main() {
	if filepath.Base(os.Args[0]) == generatorName {
		os.Exit(generate(os.Args[0], os.Args[1:]))
	}
	os.Exit(run(os.Args[1:]))
}

// app is what all verbs share.
type app struct {
	runDir string
	json   bool
	usage  bool // the words on the command line made no sense, so far
}

// run is main with its exit status.
func run(args []string) int {
	// A verb that only talks ends with the first signal; run and start have
	// their own ideas about a second one.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second one has its usual effect
	a := &app{usage: true}
	root := a.root(args...)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	return a.fail(cmd, err)
}

// verbs make the commands.
var verbs = map[string]func(*app) *cobra.Command{
	"run":        (*app).runCmd,
	"start":      (*app).startCmd,
	"up":         (*app).upCmd,
	"stop":       (*app).stopCmd,
	"down":       (*app).downCmd,
	"kill":       (*app).killCmd,
	"restart":    (*app).restartCmd,
	"reload":     (*app).reloadCmd,
	"reexec":     (*app).reexecCmd,
	"reset":      (*app).resetCmd,
	"pause":      (*app).pauseCmd,
	"resume":     (*app).resumeCmd,
	"suspend":    (*app).suspendCmd,
	"snapshot":   (*app).snapshotCmd,
	"rollback":   (*app).rollbackCmd,
	"ps":         (*app).psCmd,
	"status":     (*app).statusCmd,
	"ip":         (*app).ipCmd,
	"nic":        (*app).nicCmd,
	"disk":       (*app).diskCmd,
	"stats":      (*app).statsCmd,
	"metrics":    (*app).metricsCmd,
	"tree":       (*app).treeCmd,
	"wait":       (*app).waitCmd,
	"console":    (*app).consoleCmd,
	"logs":       (*app).logsCmd,
	"events":     (*app).eventsCmd,
	"vnc":        (*app).vncCmd,
	"screenshot": (*app).screenshotCmd,
	"sendkey":    (*app).sendkeyCmd,
	"qmp":        (*app).qmpCmd,
	"ssh":        (*app).sshCmd,
	"exec":       (*app).execCmd,
	"nsenter":    (*app).nsenterCmd,
	"init":       (*app).initCmd,
	"check":      (*app).checkCmd,
	"plan":       (*app).planCmd,
	"doctor":     (*app).doctorCmd,
	"cleanup":    (*app).cleanupCmd,
	"version":    (*app).versionCmd,
	"stop-post":  (*app).stopPostCmd,
}

// root is the whole tree of commands, or the part of it that args ask for: to make all
// takes a tenth of what a short verb takes.
func (a *app) root(args ...string) *cobra.Command {
	root := &cobra.Command{
		Use:           "vmrun",
		Short:         "Virtual machines that sit on the LAN like machines with a cable of their own",
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.ValidateFlagGroups(); err != nil { // cobra itself would only afterwards
				return err
			}
			a.usage = false
			var err error
			if a.runDir, err = filepath.Abs(a.runDir); err != nil {
				return err
			}
			if err := launcher.CheckRunDir(a.runDir); err != nil {
				return usageError{err}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&a.runDir, "run-dir", defaultRunDir(), "the `DIR` that holds the guests' run directories")
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddGroup(&cobra.Group{ID: "life", Title: "A guest's life:"}, &cobra.Group{ID: "look", Title: "Looking:"},
		&cobra.Group{ID: "help", Title: "Before and after:"})
	root.SetHelpCommand(helpCmd())
	root.SetCompletionCommandGroupID("help")
	for name, verb := range verbs {
		if len(args) == 0 || verbs[args[0]] == nil || name == args[0] {
			root.AddCommand(verb(a))
		}
	}
	root.InitDefaultHelpCmd()
	mendCompletion(root)
	return root
}

// mendCompletion makes cobra's own verb fail on a word that it does not know,
// instead of showing some help, and leaves out a shell that no Linux user has.
func mendCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	cmd, _, err := root.Find([]string{"completion"})
	if err != nil {
		return
	}
	cmd.Short = "Print the script that completes words in a shell: bash, zsh or fish"
	cmd.Long = cmd.Short + `.

make install puts these scripts where the shells look for them. Without it, a
line in ~/.bashrc or ~/.zshrc does, for bash with the package bash-completion.`
	cmd.Example = "  source <(vmrun completion bash)\n  vmrun completion fish | source"
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	for _, shell := range cmd.Commands() {
		if shell.Name() == "powershell" {
			cmd.RemoveCommand(shell)
		}
	}
}

// defaultRunDir follows systemd's RuntimeDirectory= and the user's word.
func defaultRunDir() string {
	if dir := os.Getenv("VMRUN_RUN_DIR"); dir != "" {
		return dir
	}
	if dirs := filepath.SplitList(os.Getenv("RUNTIME_DIRECTORY")); len(dirs) > 0 { // systemd.exec(5)
		return dirs[0]
	}
	return launcher.DefaultRunDir
}
