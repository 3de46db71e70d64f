// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package sshmachine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// server is the SSH server of a machine made without root. It runs commands and serves files on the machine, and does not
// know terminals, forwarding and agents.
type server struct {
	config   *ssh.ServerConfig
	listener net.Listener
	init     int // the machine's pid 1
	root     *os.Root
	work     sync.WaitGroup

	mu     sync.Mutex
	going  chan struct{} // closed unless the machine hangs
	conns  map[net.Conn]bool
	closed chan struct{}
}

func serve(ctx context.Context, address string, hostKey ssh.Signer, authorized []byte, init int) (*server, error) {
	keys, err := parseAuthorizedKeys(authorized)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", init))
	if err != nil {
		return nil, fmt.Errorf("open the machine's files: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	s := &server{
		config: &ssh.ServerConfig{
			PublicKeyCallback: func(conn ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
				if conn.User() != "root" || !keys[string(key.Marshal())] {
					return nil, errNotAuthorized
				}
				return &ssh.Permissions{}, nil
			},
		},
		listener: listener, init: init, root: root,
		going: make(chan struct{}), conns: map[net.Conn]bool{}, closed: make(chan struct{}),
	}
	close(s.going)
	s.config.AddHostKey(hostKey)
	s.work.Go(s.accept)
	return s, nil
}

// close ends all connections, as a power cut does, and waits until nothing of the server is left.
func (s *server) close() {
	close(s.closed)
	s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.work.Wait()
	s.root.Close()
}

func (s *server) hang(hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.going:
		if hang {
			s.going = make(chan struct{})
		}
	default:
		if !hang {
			close(s.going)
		}
	}
}

// wait returns when the machine does not hang, or false when it is switched off.
func (s *server) wait() bool {
	s.mu.Lock()
	going := s.going
	s.mu.Unlock()
	select {
	case <-going:
		return true
	case <-s.closed:
		return false
	}
}

func (s *server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return // closed
		}
		if !s.track(conn) {
			return
		}
		s.work.Go(func() {
			defer s.forget(conn)
			if s.wait() {
				s.connection(conn)
			}
		})
	}
}

func (s *server) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		conn.Close()
		return false
	default:
		s.conns[conn] = true
		return true
	}
}

func (s *server) forget(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

func (s *server) connection(conn net.Conn) {
	// What goes wrong on a connection ends it; the client sees that.
	_, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		return
	}
	var sessions sync.WaitGroup
	sessions.Go(func() { ssh.DiscardRequests(requests) })
	for opened := range channels {
		if opened.ChannelType() != "session" {
			_ = opened.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		channel, requests, err := opened.Accept()
		if err != nil {
			break
		}
		sessions.Go(func() { s.session(channel, requests) })
	}
	conn.Close()
	sessions.Wait()
}

// session serves the first request of a session that runs something, and refuses all others.
func (s *server) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := false
	for request := range requests {
		run := s.program(request)
		accepted := run != nil && !started
		if request.WantReply {
			_ = request.Reply(accepted, nil)
		}
		if accepted {
			started = true
			running.Go(func() {
				status := run(ctx, channel)
				_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
				channel.Close()
			})
		}
	}
}

// program is what a request asks to run, or nil.
func (s *server) program(request *ssh.Request) func(context.Context, ssh.Channel) uint32 {
	var payload struct{ Text string }
	switch request.Type {
	case "exec":
		if ssh.Unmarshal(request.Payload, &payload) == nil {
			return func(ctx context.Context, channel ssh.Channel) uint32 { return s.exec(ctx, channel, payload.Text) }
		}
	case "subsystem":
		if ssh.Unmarshal(request.Payload, &payload) == nil && payload.Text == "sftp" {
			return func(_ context.Context, channel ssh.Channel) uint32 { return s.sftp(channel) }
		}
	}
	return nil
}

// exec runs a command on the machine until it ends or ctx does.
func (s *server) exec(ctx context.Context, channel ssh.Channel, command string) uint32 {
	const noProgram = 127
	cmd := enter(s.init, command)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return noProgram
	}
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(channel.Stderr(), err)
		return noProgram
	}
	// Both end with the session at the latest.
	go func() {
		_, _ = io.Copy(stdin, channel)
		stdin.Close()
	}()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return uint32(exit.ExitCode())
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return noProgram
	}
	return 0
}

func (s *server) sftp(channel ssh.Channel) uint32 {
	files := &files{root: s.root}
	server := sftp.NewRequestServer(channel, sftp.Handlers{FileGet: files, FilePut: files, FileCmd: files, FileList: files})
	defer server.Close()
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return 1
	}
	return 0
}
