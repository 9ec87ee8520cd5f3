package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// exec runs a program that Options.Files brought to its end. What it writes goes
// to the console as it comes, for when the guest does not live to answer.
func (g *guest) exec(args []string) (answer, error) {
	env := append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/")
	for len(args) > 0 && strings.Contains(args[0], "=") {
		env, args = append(env, args[0]), args[1:]
	}
	if len(args) == 0 {
		return answer{}, errors.New("no program")
	}
	out, in, err := os.Pipe()
	if err != nil {
		return answer{}, err
	}
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, in, in
	err = cmd.Start()
	in.Close()
	if err != nil {
		return answer{}, err
	}
	n := g.relay(out)
	if err := cmd.Wait(); err != nil {
		return answer{}, err
	}
	return answer{reply: fmt.Sprintf("lines=%d", n)}, nil
}

// relay writes a program's lines to the console, bare, and counts them.
func (g *guest) relay(from io.Reader) (n int) {
	for lines := bufio.NewScanner(from); lines.Scan(); n++ {
		g.console.write(lines.Text() + "\n")
	}
	return n
}
