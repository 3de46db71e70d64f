// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgproto3"
)

// maxFrame bounds a message; what is longer is not of this protocol.
const maxFrame = 1 << 28

// headerBytes are a message's type and length.
const headerBytes = 5

// frame is one message, as it is on the wire.
type frame []byte

func (f frame) kind() byte   { return f[0] }
func (f frame) body() []byte { return f[headerBytes:] }

// readFrame reads a message. The first one of a connection has no type.
func readFrame(r io.Reader, typed bool) (frame, error) {
	head := make([]byte, 4, headerBytes)
	if typed {
		head = append(head, 0)
	}
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint32(head[len(head)-4:])) - 4
	if length < 0 || length > maxFrame {
		return nil, fmt.Errorf("read message: length of %d", length)
	}
	f := make(frame, len(head)+length)
	copy(f, head)
	_, err := io.ReadFull(r, f[len(head):])
	return f, err
}

func cstring(b []byte) (text string, rest []byte) {
	s, rest, _ := bytes.Cut(b, []byte{0})
	return string(s), rest
}

// failing is what the server is sent in place of a statement that is to fail: the error is the server's own, so all that follows from it
// is as it would be.
func failing(sqlState string) ([]byte, error) {
	messages := []pgproto3.FrontendMessage{
		&pgproto3.Parse{Query: "DO $$ BEGIN RAISE EXCEPTION 'injected' USING ERRCODE = '" + sqlState + "'; END $$"},
		&pgproto3.Bind{}, &pgproto3.Execute{},
	}
	var out []byte
	var err error
	for _, m := range messages {
		if out, err = m.Encode(out); err != nil {
			return nil, fmt.Errorf("encode failing statement: %w", err)
		}
	}
	return out, nil
}

// errorAnswer is an error as the server would send it.
func errorAnswer(severity, sqlState string) ([]byte, error) {
	return (&pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: sqlState, Message: "injected"}).Encode(nil)
}

// sqlStateOf reads an ErrorResponse.
func sqlStateOf(f frame) string {
	var m pgproto3.ErrorResponse
	if err := m.Decode(f.body()); err != nil {
		return "unreadable"
	}
	return m.Code
}

// applicationOf reads what a program calls itself from the first message of a connection.
func applicationOf(first frame) string {
	var m pgproto3.StartupMessage
	const lengthBytes = 4
	if err := m.Decode(first[lengthBytes:]); err != nil {
		return "" // it asks for encryption, or to cancel a request
	}
	return m.Parameters["application_name"]
}
