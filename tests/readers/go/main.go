// Reads the examples with types that go-jsonschema makes of the schemas, and their headers with the
// CloudEvents SDK. Prints a line for each:
//
//	<file> <event|change|dead-letter> <action or kind> <owner>/<repository>#<number> <assignees>
//
//	go run . DOCS
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	cejetstream "github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/nats-io/nats.go"

	"coordinator.example/reader/change"
	"coordinator.example/reader/event"
)

type message struct {
	Subject string            `json:"subject"`
	Headers map[string]string `json:"headers"`
	Payload json.RawMessage   `json:"payload"`
}

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("usage: go run . DOCS"))
	}
	for _, folder := range []string{"events", "changes", "dead-letters"} {
		files, err := filepath.Glob(filepath.Join(os.Args[1], "examples/v1", folder, "*.json"))
		if err != nil {
			fail(err)
		}
		for _, file := range files {
			line, err := read(folder, file)
			if err != nil {
				fail(fmt.Errorf("%s: %w", file, err))
			}
			name := folder + "/" + filepath.Base(file)
			fmt.Println(strings.TrimSpace(name + " " + line))
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func read(folder, file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var m message
	if err := json.Unmarshal(text, &m); err != nil {
		return "", err
	}
	if folder != "dead-letters" {
		if err := cloudEvent(m); err != nil {
			return "", err
		}
	}
	if folder == "changes" {
		var c change.Change
		if err := json.Unmarshal(m.Payload, &c); err != nil {
			return "", err
		}
		// A kind that is not known is skipped by a real reader.
		place := fmt.Sprintf("%s/%s#%d", c.Repository.Owner, c.Repository.Name, c.Issue.Number)
		return fmt.Sprintf("change %s %s %s", c.Kind, place, strings.Join(c.Assignees, ",")), nil
	}
	kind := strings.TrimSuffix(folder, "s")
	if m.Payload == nil {
		return kind + " unreadable", nil
	}
	var e event.IssueEvent
	if err := json.Unmarshal(m.Payload, &e); err != nil {
		return "", err
	}
	var assignees []string
	for _, user := range e.Issue.Assignees {
		assignees = append(assignees, user.Login)
	}
	place := fmt.Sprintf("%s/%s#%d", e.Repository.Owner, e.Repository.Name, e.Issue.Number)
	return fmt.Sprintf("%s %s %s %s", kind, e.Action, place, strings.Join(assignees, ",")), nil
}

// cloudEvent has the SDK read the message, and compares what it read with what stands there.
func cloudEvent(m message) error {
	header := nats.Header{}
	for name, value := range m.Headers {
		// As the client does with what comes from the wire: names are not changed.
		header[name] = []string{value}
	}
	wire := &nats.Msg{Subject: m.Subject, Header: header, Data: m.Payload}
	read, err := binding.ToEvent(context.Background(), cejetstream.NewMessage(wire))
	if err != nil {
		return fmt.Errorf("the CloudEvents SDK does not read it: %w", err)
	}
	if err := read.Validate(); err != nil {
		return fmt.Errorf("not a CloudEvent: %w", err)
	}
	for _, pair := range [][2]string{
		{read.ID(), m.Headers["Nats-Msg-Id"]},
		{read.Type(), m.Headers["ce-type"]},
		{read.Source(), m.Headers["ce-source"]},
		{read.DataContentType(), "application/json"},
		{read.DataSchema(), m.Headers["ce-dataschema"]},
		{string(read.Data()), string(m.Payload)},
	} {
		if pair[0] != pair[1] {
			return fmt.Errorf("the CloudEvents SDK reads %q, and it is %q", pair[0], pair[1])
		}
	}
	if len(read.Extensions()) != 0 {
		return fmt.Errorf("it has extensions: %v", read.Extensions())
	}
	return nil
}
