import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.networknt.schema.JsonSchema;
import com.networknt.schema.JsonSchemaFactory;
import com.networknt.schema.SpecVersion;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/**
 * Reads the examples into records, after a validator has compared them with the schemas. Prints a line for each:
 *
 * <pre>{@code <file> <event|change|dead-letter> <action or kind> <owner>/<repository>#<number> <assignees>}</pre>
 */
public final class Reader {
    private static final ObjectMapper MAPPER = new ObjectMapper();

    record Message(String subject, Map<String, String> headers, JsonNode payload, String payload_text) {}

    // A reader takes what it needs, and passes over fields that it does not know.
    @JsonIgnoreProperties(ignoreUnknown = true)
    record User(long id, String login) {}

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Issue(long id, long number, String title, String state, List<User> assignees) {}

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Repository(long id, String owner, String name) {}

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Event(int version, String action, Issue issue, Repository repository, User sender) {}

    @JsonIgnoreProperties(ignoreUnknown = true)
    record Change(int version, String kind, List<String> added, List<String> removed, List<String> assignees,
            Issue issue, Repository repository, User sender) {}

    private final Map<String, JsonSchema> schemas;

    private Reader(Path docs) throws IOException {
        schemas = Map.of(
                "urn:coordinator:schema:event:v1", schema(docs.resolve("schema/event.v1.json")),
                "urn:coordinator:schema:change:v1", schema(docs.resolve("schema/change.v1.json")));
    }

    private static JsonSchema schema(Path file) throws IOException {
        JsonSchemaFactory factory = JsonSchemaFactory.getInstance(SpecVersion.VersionFlag.V202012);
        return factory.getSchema(MAPPER.readTree(file.toFile()));
    }

    public static void main(String[] args) throws IOException {
        Path docs = Path.of(args[0]);
        Reader reader = new Reader(docs);
        for (String folder : List.of("events", "changes", "dead-letters")) {
            try (var files = Files.list(docs.resolve("examples/v1").resolve(folder))) {
                for (Path file : files.sorted().toList()) {
                    Message message = MAPPER.readValue(file.toFile(), Message.class);
                    String line = folder + "/" + file.getFileName() + " " + reader.line(folder, message);
                    System.out.println(line.strip());
                }
            }
        }
    }

    private String line(String folder, Message message) throws IOException {
        if (folder.equals("changes")) {
            Change change = valid(message, Change.class);
            // A kind that is not known is skipped by a real reader.
            return "change " + change.kind() + " " + place(change.repository(), change.issue()) + " "
                    + String.join(",", change.assignees());
        }
        String kind = folder.equals("events") ? "event" : "dead-letter";
        if (message.payload() == null) {
            return kind + " unreadable";
        }
        Event event = valid(message, Event.class);
        String assignees = event.issue().assignees().stream().map(User::login).collect(Collectors.joining(","));
        return kind + " " + event.action() + " " + place(event.repository(), event.issue()) + " " + assignees;
    }

    private <T> T valid(Message message, Class<T> type) throws IOException {
        var errors = schemas.get(message.headers().get("ce-dataschema")).validate(message.payload());
        if (!errors.isEmpty()) {
            throw new IOException(message.subject() + ": " + errors);
        }
        return MAPPER.treeToValue(message.payload(), type);
    }

    private static String place(Repository repository, Issue issue) {
        return repository.owner() + "/" + repository.name() + "#" + issue.number();
    }
}
