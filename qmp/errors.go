package qmp

import (
	"errors"
	"fmt"
)

// Error classes, from QapiErrorClass in qapi/error.json.
const (
	ClassGeneric         = "GenericError"
	ClassCommandNotFound = "CommandNotFound"
	ClassDeviceNotActive = "DeviceNotActive"
	ClassDeviceNotFound  = "DeviceNotFound"
	ClassKVMMissingCap   = "KVMMissingCap"
)

var (
	// ErrClosed is wrapped by every error that says the connection has
	// ended, beside the cause when there is one.
	ErrClosed = errors.New("monitor connection closed")

	// ErrProtocol is wrapped when the peer sent what is not QMP, or more
	// than the bounds allow.
	ErrProtocol = errors.New("not the QEMU machine protocol")

	// ErrCommandNotFound matches, with errors.Is, every Error of the class
	// CommandNotFound: the command is unknown, or not allowed in this state.
	ErrCommandNotFound error = &Error{Class: ClassCommandNotFound}

	// ErrDeviceNotFound matches every Error of the class DeviceNotFound.
	ErrDeviceNotFound error = &Error{Class: ClassDeviceNotFound}
)

// Error is the answer of a peer that received a command and refused it.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// Errorf returns an Error of the class GenericError.
func Errorf(format string, args ...any) *Error {
	return &Error{Class: ClassGeneric, Desc: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string {
	if e.Class == ClassGeneric || e.Class == "" {
		return e.Desc
	}
	return e.Class + ": " + e.Desc
}

// Is reports a match by class when target is an Error without a description.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Desc == "" && t.Class == e.Class
}

// closedError wraps ErrClosed and the cause.
func closedError(cause error) error {
	if cause == nil || errors.Is(cause, ErrClosed) {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrClosed, cause)
}
