import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Sends one query twice with the JDK's defaults, which offer "Upgrade: h2c"; prints the answers. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/rewrite"))
            .header("content-type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString("{\"query\": \"a stake\"}"))
            .build();
        for (int i = 0; i < 2; i++) {
            HttpResponse<String> answer =
                client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
        }
    }
}
