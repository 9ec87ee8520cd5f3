package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"vmrun/netsetup/nettest/wire"
)

// tcp is serve, sink, stop, send or echo.
func (g *guest) tcp(args []string) (answer, error) {
	switch verb, rest := args[0], args[1:]; {
	case verb == "serve":
		return g.serveTCP(rest[0], func(p uint16) (io.Closer, error) { return wire.ServeEcho(p) })
	case verb == "sink":
		return g.serveTCP(rest[0], func(p uint16) (io.Closer, error) { return wire.ServeDiscard(p) })
	case verb == "stop":
		if !g.held.drop("tcp " + rest[0]) {
			return answer{}, fmt.Errorf("nothing serves port %s", rest[0])
		}
		return answer{}, nil
	case verb == "send" && len(rest) == 3:
		return sendTCP(rest)
	case verb == "echo" && len(rest) >= 3:
		return echoTCP(rest)
	}
	return answer{}, fmt.Errorf("%s: serve PORT, sink PORT, stop PORT, send ADDRESS PORT SECONDS or echo ADDRESS PORT TEXT", args[0])
}

func (g *guest) serveTCP(port string, start func(uint16) (io.Closer, error)) (answer, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return answer{}, err
	}
	g.held.drop("tcp " + port)
	s, err := start(uint16(n))
	if err != nil {
		return answer{}, err
	}
	g.held.put("tcp "+port, s)
	return answer{}, nil
}

func sendTCP(args []string) (answer, error) {
	to, err := endpoint(args[0], args[1])
	if err != nil {
		return answer{}, err
	}
	length, err := parseDuration(args[2])
	if err != nil {
		return answer{}, err
	}
	t, err := wire.SendTCP(context.Background(), to, min(length, longest))
	return answer{reply: fmt.Sprintf("bytes=%d seconds=%.2f mbit=%.1f", t.Bytes, t.Elapsed.Seconds(), t.Mbit())}, err
}

func echoTCP(args []string) (answer, error) {
	to, err := endpoint(args[0], args[1])
	if err != nil {
		return answer{}, err
	}
	reply, err := wire.EchoTCP(context.Background(), to, strings.Join(args[2:], " "))
	return answer{reply: reply}, err
}

func endpoint(addr, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a, uint16(p)), err
}

func (g *guest) listen(args []string) (answer, error) {
	addr, err := udpEndpoint(args)
	if err != nil {
		return answer{}, err
	}
	l, err := wire.Listen(args[3], addr)
	if err != nil {
		return answer{}, err
	}
	g.held.put("listen "+strings.Join(args, " "), l)
	return answer{}, nil
}

func (g *guest) heard(args []string) (answer, error) {
	l, ok := g.held.get("listen " + strings.Join(args, " ")).(*wire.Listener)
	if !ok {
		return answer{}, fmt.Errorf("nothing listens to %s", strings.Join(args, " "))
	}
	count, _ := l.Heard()
	return answer{reply: fmt.Sprintf("datagrams=%d", count)}, nil
}

func (g *guest) unlisten(args []string) (answer, error) {
	a, err := g.heard(args)
	g.held.drop("listen " + strings.Join(args, " "))
	return a, err
}

func udpEndpoint(args []string) (netip.AddrPort, error) {
	if args[0] != "udp" {
		return netip.AddrPort{}, fmt.Errorf("%s: only udp", args[0])
	}
	return endpoint(args[1], args[2])
}

func (g *guest) sendUDP(args []string) (answer, error) {
	to, err := endpoint(args[0], args[1])
	if err != nil {
		return answer{}, err
	}
	count := 1
	if len(args) > 4 {
		if count, err = strconv.Atoi(args[4]); err != nil {
			return answer{}, err
		}
	}
	return answer{reply: fmt.Sprintf("sent=%d", count)}, wire.SendUDP(args[2], to, args[3], count)
}
