// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package witnessed lets somebody outside of the operator watch what drivers
// do to machines: each work is announced, each step waits until the witness
// has seen it, and a work that the witness refuses stops. The witness is what
// a management controller with a memory for fencing numbers would be. The
// fault suite builds operators with it; released programs do not contain it.
package witnessed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// The kinds of events.
const (
	// Begin: a driver was called for a work.
	Begin = "begin"
	// Step: a driver is about to take a step, and the work was its own a moment
	// ago.
	Step = "step"
	// End: a driver returns. It is the only one that cannot be refused.
	End = "end"
)

// Event is what the witness is told, as JSON.
type Event struct {
	// Kind is Begin, Step or End.
	Kind string `json:"kind"`
	// PID is the process that the driver runs in.
	PID int `json:"pid"`
	// Machine, Pool, Name and Process say what is worked on; Fence says which
	// work it is.
	Machine uuid.UUID `json:"machine"`
	Pool    string    `json:"pool"`
	Name    string    `json:"name"`
	Process string    `json:"process"`
	Fence   int64     `json:"fence"`
	Attempt int       `json:"attempt"`
	// Step is the name of a step.
	Step string `json:"step,omitempty"`
	// Asked and Answered are before and after the question whether the work is
	// still ours, of a step, in nanoseconds since 1970 by the system's clock.
	Asked    int64 `json:"asked,omitempty"`
	Answered int64 `json:"answered,omitempty"`
	// Error is what a driver returns; empty for success.
	Error string `json:"error,omitempty"`
}

// now asks the system, and not the program, whose clock a test may have set
// wrong.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}

// endTimeout bounds how long a driver that returns waits for the witness.
const endTimeout = 10 * time.Second

// Driver is a driver that is watched.
type Driver struct {
	driver provider.Driver
	url    string
	client *http.Client
}

var _ provider.Driver = (*Driver)(nil)

// New returns a driver whose works are told to the witness at an URL. Its
// Close closes the driver that it wraps.
func New(driver provider.Driver, url string) *Driver {
	return &Driver{driver: driver, url: url, client: &http.Client{}}
}

// Close implements provider.Driver.
func (d *Driver) Close() error {
	d.client.CloseIdleConnections()
	return d.driver.Close()
}

// StartAgent implements provider.AgentStarter.
func (d *Driver) StartAgent(ctx context.Context, m provider.Machine, s provider.Steps) (provider.Agent, error) {
	event := Event{
		PID: os.Getpid(), Machine: m.ID, Pool: m.Pool, Name: m.Name, Process: m.Process, Fence: m.Fence, Attempt: m.Attempt,
	}
	event.Kind = Begin
	if err := d.tell(ctx, event); err != nil {
		return provider.Agent{}, err
	}
	agent, err := d.driver.StartAgent(ctx, m, &steps{Steps: s, driver: d, event: event})
	event.Kind = End
	if err != nil {
		event.Error = err.Error()
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if told := d.tell(ending, event); err == nil && told != nil {
		err = told // what nobody has seen has not succeeded
	}
	return agent, err
}

type steps struct {
	provider.Steps
	driver *Driver
	event  Event
}

func (s *steps) Step(ctx context.Context, name string, percent int) error {
	event := s.event
	event.Kind, event.Step, event.Asked = Step, name, now()
	if err := s.Steps.Step(ctx, name, percent); err != nil {
		return err
	}
	event.Answered = now()
	return s.driver.tell(ctx, event)
}

// tell returns when the witness has seen an event, with an error when it
// refuses it.
func (d *Driver) tell(ctx context.Context, e Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("tell witness of %s: %w", e.Name, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("tell witness of %s: %w", e.Name, err)
	}
	response, err := d.client.Do(request)
	if err != nil {
		if ended := provider.ContextError(ctx, "tell witness of "+e.Name); ended != nil {
			return ended
		}
		return &provider.Error{Reason: provider.ReasonUnreachable, Message: "witness of " + e.Name + " does not answer", Err: err}
	}
	defer func() { _ = response.Body.Close() }()
	const bound = 1 << 10
	text, err := io.ReadAll(io.LimitReader(response.Body, bound))
	if response.StatusCode == http.StatusOK && err == nil {
		return nil
	}
	return &provider.Error{
		Reason:  provider.ReasonCommandFailed,
		Message: fmt.Sprintf("witness of %s refuses fence %d: %s", e.Name, e.Fence, text),
		Err:     errors.Join(err, errRefused),
	}
}

var errRefused = errors.New("refused")
